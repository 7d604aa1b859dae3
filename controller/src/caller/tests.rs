//! An API server that is away, slow, hostile or forgetful of our rights.

use axum::http::StatusCode;
use tokio::net::TcpListener;

use super::{
    fake::{FakeApiServer, api_server},
    *,
};
use crate::request::PodReference;

fn pod() -> PodReference {
    PodReference { namespace: "jobs".to_owned(), name: "etl-0".to_owned(), uid: "u-1".to_owned() }
}

async fn answering(status: StatusCode, body: &str) -> ApiServerError {
    let fake = FakeApiServer::default();
    fake.answers().always = Some((status, body.to_owned()));
    fake.serve().await.live_pod(&pod()).await.unwrap_err()
}

#[tokio::test]
async fn an_api_server_that_is_down_is_named_with_its_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = api_server(&url).live_pod(&pod()).await.unwrap_err();
    assert!(matches!(error, ApiServerError::Unreachable { .. }), "{error:?}");
    let sentence = error.to_string();
    assert!(sentence.contains(&url) && sentence.contains("refused"), "{sentence}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_waited_for_a_short_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let error = api_server(&url).live_pod(&pod()).await.unwrap_err();
    assert!(matches!(error, ApiServerError::Late { .. } | ApiServerError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&url), "{error}");
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let status = r#"{"kind":"Status","status":"Failure","message":"pods is forbidden","reason":"Forbidden","code":403}"#;
    let error = answering(StatusCode::FORBIDDEN, status).await;
    assert!(matches!(error, ApiServerError::Forbidden { .. }), "{error:?}");
    let sentence = error.to_string();
    assert!(sentence.contains("get pods") && sentence.contains("pods is forbidden"), "{sentence}");
}

#[tokio::test]
async fn an_overloaded_api_server_is_not_taken_for_a_refusal() {
    let status = r#"{"kind":"Status","status":"Failure","message":"etcd has no leader","code":500}"#;
    let error = answering(StatusCode::INTERNAL_SERVER_ERROR, status).await;
    assert!(matches!(error, ApiServerError::Unwell { .. }), "{error:?}");
    assert!(error.to_string().contains("etcd has no leader"), "{error}");
}

#[tokio::test]
async fn an_unreadable_answer_is_not_repeated_in_the_error() {
    let error = answering(StatusCode::OK, r#"{"metadata": "s3cret"}"#).await;
    assert!(matches!(error, ApiServerError::Unreadable { .. }), "{error:?}");
    assert!(!error.to_string().contains(r#"{"metadata""#), "{error}");
}

#[tokio::test]
async fn a_pod_that_is_not_there_is_an_answer_and_no_error() {
    let api_server = FakeApiServer::default().serve().await;
    assert_eq!(api_server.live_pod(&pod()).await.unwrap(), None);
}
