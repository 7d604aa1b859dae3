use tempfile::TempDir;

use super::*;

fn password_of(content: &[u8]) -> Result<String, String> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("password");
    fs::write(&path, content).unwrap();
    password(&path).map(|password| password.expose_secret().to_owned())
}

#[test]
fn a_password_is_one_line_and_never_empty() {
    assert_eq!(password_of(b"secret").unwrap(), "secret");
    assert_eq!(password_of(b" sec ret \n").unwrap(), " sec ret ");
    assert_eq!(password_of(b"secret\r\n").unwrap(), "secret");
    for bad in [&b""[..], b"\n", b"\r\n", b"one\ntwo\n", b"\xff"] {
        assert!(password_of(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn pauses_grow_to_a_limit() {
    for (failures, longest) in [(1, 100), (2, 200), (4, 800), (40, 5000), (u32::MAX, 5000)] {
        let longest = Duration::from_millis(longest);
        let found = pause(failures);
        assert!(found <= longest && found >= longest / 2, "{failures}: {found:?}");
    }
}

fn settings(address: &str) -> Settings {
    Settings {
        servers: vec![address.to_owned()],
        start_tls: false,
        ca: None,
        client: None,
        bind: Bind::Anonymous,
        active_directory: false,
        connect_limit: Duration::from_secs(1),
        bind_limit: Duration::from_millis(200),
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_not_asked_again_before_the_pause_is_over() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("ldap://{}", listener.local_addr().unwrap());
    drop(listener);
    let connector = Connector::new(settings(&address));
    let error = connector.connection().await.err().unwrap();
    assert_eq!(error.reason(), "DIRECTORY_UNREACHABLE");
    assert!(error.to_string().contains(&address), "{error}");
    assert_eq!(connector.connection().await.err().unwrap(), error);
    assert_eq!(connector.state.lock().await.number, 1);
    tokio::time::sleep(FIRST_PAUSE).await;
    connector.connection().await.err().unwrap();
    assert_eq!(connector.state.lock().await.number, 2);
}

#[tokio::test]
async fn a_server_that_never_answers_the_bind_is_late_for_all_who_wait_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = Connector::new(settings(&format!("ldap://{}", listener.local_addr().unwrap())));
    let (one, other) = tokio::join!(connector.connection(), connector.connection());
    for error in [one.err().unwrap(), other.err().unwrap()] {
        assert_eq!(error.reason(), "DIRECTORY_LATE");
    }
    assert_eq!(connector.state.lock().await.number, 1);
}

#[test]
fn files_that_a_connection_needs_are_checked_beforehand() {
    let folder = TempDir::new().unwrap();
    let (ca, empty) = (folder.path().join("ca.crt"), folder.path().join("empty"));
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["ldap.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::write(&ca, certificate.pem()).unwrap();
    fs::write(&empty, "").unwrap();
    let check = |ca: &Path, client: Option<(&Path, &Path)>, password: &Path| {
        let client = client.map(|(certificate, key)| ClientFiles {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        });
        let bind = Bind::Simple { dn: "cn=csi".to_owned(), password_file: password.to_owned() };
        Settings { ca: Some(ca.to_owned()), client, bind, ..settings("ldaps://ldap.test") }.check()
    };
    let missing = folder.path().join("missing");
    assert_eq!(check(&ca, None, &ca), [format!("{} must hold the password, in one line", ca.display())]);
    let mistakes = check(&empty, None, &missing);
    assert!(mistakes[0].contains("empty holds no certificate"), "{mistakes:?}");
    assert!(mistakes[1].contains("missing"), "{mistakes:?}");
    let mistakes = check(&ca, Some((&ca, &empty)), &missing);
    assert!(mistakes[0].contains("empty holds no private key"), "{mistakes:?}");
}
