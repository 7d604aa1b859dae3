use std::fs;

use tempfile::TempDir;
use tokio::time::advance;

use super::*;

const ETL: &str = "users: {etl: {groups: [hadoop-users, batch]}, batch: {}}";

fn opened(content: &str) -> (TempDir, PathBuf, Result<Users, String>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("users.yaml");
    fs::write(&path, content).unwrap();
    let users = Users::open(path.clone());
    (folder, path, users)
}

async fn groups(users: &Users, name: &str) -> Option<Vec<String>> {
    let account = users.account(&name.parse().unwrap()).await?;
    Some(account.groups.iter().cloned().collect())
}

#[tokio::test]
async fn knows_the_groups_of_its_users_and_no_other_user() {
    let (_folder, _, users) = opened(ETL);
    let users = users.unwrap();
    assert_eq!(groups(&users, "etl").await.unwrap(), ["batch", "hadoop-users"]);
    assert_eq!(groups(&users, "batch").await.unwrap(), Vec::<String>::new());
    assert_eq!(groups(&users, "ETL").await, None);
    assert_eq!(groups(&users, "nobody").await, None);
}

#[test]
fn a_wrong_file_is_refused_with_its_mistake() {
    for (content, mistake) in [
        ("users: {etl: {group: [x]}}", "group"),
        ("{}", "users"),
        ("users: {'etl@REALM': {}, '-x': {}}", "\"-x\""),
        ("users: {etl: {groups: ['']}}", "users.etl.groups"),
        ("users: {etl: {groups: [a]}, etl: {groups: [b]}}", "etl"),
    ] {
        let (_folder, path, users) = opened(content);
        let error = users.err().unwrap_or_else(|| panic!("accepted {content}"));
        assert!(error.starts_with("file: ") && error.contains(mistake), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    let error = Users::open("/nonexistent.yaml".into()).err().unwrap();
    assert!(error.contains("/nonexistent.yaml") && error.contains("No such file"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_change_counts_and_a_broken_one_leaves_what_was() {
    let (_folder, path, users) = opened(ETL);
    let users = users.unwrap();
    fs::write(&path, "users: {etl: {groups: [hadoop-users]}}").unwrap();
    advance(LOOK_AGAIN).await;
    assert_eq!(groups(&users, "etl").await.unwrap(), ["hadoop-users"]);
    assert_eq!(groups(&users, "batch").await, None);
    assert_eq!(users.check().await, Ok(()));

    for broken in [Some("users: {etl: {groups: ["), None] {
        match broken {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        advance(LOOK_AGAIN).await;
        assert_eq!(groups(&users, "etl").await.unwrap(), ["hadoop-users"]);
        let error = users.check().await.unwrap_err();
        assert_eq!(error.reason(), "DIRECTORY_UNWELL");
        assert!(error.to_string().contains("users.yaml"), "{error}");
    }

    fs::write(&path, ETL).unwrap();
    advance(LOOK_AGAIN).await;
    assert_eq!(users.check().await, Ok(()));
    assert_eq!(groups(&users, "etl").await.unwrap(), ["batch", "hadoop-users"]);
}
