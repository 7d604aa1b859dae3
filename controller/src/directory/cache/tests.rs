use super::*;

fn lives(positive: u64, negative: u64) -> Section {
    Section { positive_seconds: positive, negative_seconds: negative, ..Section::default() }
}

async fn ask(answers: &Cache<HadoopUser, Answer>, name: &str, fresh: Answer) -> Answer {
    answers.get_with(name.parse().unwrap(), async { fresh }).await
}

fn member() -> Answer {
    Some(Arc::new(Account { groups: ["batch".to_owned()].into() }))
}

#[tokio::test]
async fn answers_live_as_long_as_configured_and_no_longer() {
    let answers = cache(lives(1, 0));
    assert_eq!(ask(&answers, "etl", member()).await, member());
    assert_eq!(ask(&answers, "etl", None).await, member());
    assert_eq!(ask(&answers, "nobody", None).await, None);
    assert_eq!(ask(&answers, "nobody", member()).await, member());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // A new answer in the place of an old one has a whole life, and its own.
    assert_eq!(ask(&answers, "etl", None).await, None);
    assert_eq!(ask(&answers, "etl", member()).await, member());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(ask(&answers, "etl", None).await, member());
}

#[test]
fn lives_that_hide_changes_for_long_are_mistakes() {
    assert_eq!(Section::default().mistakes(), Vec::<String>::new());
    assert_eq!(lives(3601, 3601).mistakes().len(), 2);
    assert_eq!(Section { megabytes: 0, ..Section::default() }.mistakes().len(), 1);
}

#[tokio::test]
async fn users_of_many_groups_do_not_fill_the_memory() {
    let answers = cache(Section { megabytes: 1, ..Section::default() });
    let groups = (0..1000).map(|number| format!("{number:0>1000}")).collect();
    let crowded = Some(Arc::new(Account { groups }));
    for number in 0..20 {
        ask(&answers, &format!("user{number}"), crowded.clone()).await;
    }
    answers.run_pending_tasks().await;
    assert!(answers.entry_count() <= 1, "{}", answers.entry_count());
}
