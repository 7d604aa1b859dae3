//! HTTP/1.1 or 2 on one connection. A connection on which nothing happens does not stay, and none stays for ever, so
//! that a new replica and a new certificate get their share.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use process::tls::Connection;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt, service_fn};
use tracing::debug;

/// From the handshake to the first request. Of HTTP/1.1, from the end of a request to the headers of the next one.
pub(super) const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Between requests.
pub(super) const IDLE_LIMIT: Duration = Duration::from_mins(2);
const MAX_AGE: Duration = Duration::from_mins(30);
/// Once no more requests are taken, for those that came before.
const LAST_REQUESTS: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADERS: u32 = 16 * 1024;
const MAX_HEADER_BUFFER: usize = 64 * 1024;
const STREAMS: u32 = 256;

/// Serves until the connection ends, or until `stop` and the requests under way are answered.
pub(super) async fn serve(connection: TlsStream<Connection>, router: Router, stop: CancellationToken) {
    let peer = connection.get_ref().0.peer();
    let activity = Arc::new(Activity::new());
    let noted = activity.clone();
    let service = TowerToHyperService::new(service_fn(move |request: Request<Incoming>| {
        let (under_way, router) = (UnderWay::begin(noted.clone()), router.clone());
        async move {
            let answer = router.oneshot(request).await;
            drop(under_way);
            answer
        }
    }));
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(MAX_HEADER_BUFFER);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEADERS);
    let mut conversation = pin!(http.serve_connection(TokioIo::new(connection), service));
    let old = Instant::now() + MAX_AGE;
    let mut ends = None; // when the last requests have to be answered
    loop {
        let wake = ends.unwrap_or_else(|| activity.stale().min(old));
        tokio::select! {
            ended = conversation.as_mut() => {
                if let Err(error) = ended {
                    debug!(%peer, error, "A connection failed");
                }
                return;
            }
            () = stop.cancelled(), if ends.is_none() => {}
            () = sleep_until(wake) => {
                if ends.is_some() {
                    debug!(%peer, "Cut a connection off");
                    return;
                }
                if activity.stale().min(old) > Instant::now() {
                    continue; // something has happened meanwhile
                }
            }
        }
        conversation.as_mut().graceful_shutdown();
        ends = Some(Instant::now() + LAST_REQUESTS);
    }
}

/// When something last happened on a connection.
struct Activity {
    under_way: AtomicUsize,
    /// When the connection has been idle for too long, if nothing happens.
    stale: Mutex<Instant>,
}

impl Activity {
    fn new() -> Self {
        Self { under_way: AtomicUsize::new(0), stale: Mutex::new(Instant::now() + HEADER_LIMIT) }
    }

    fn stale(&self) -> Instant {
        if self.under_way.load(Ordering::Acquire) > 0 {
            return Instant::now() + IDLE_LIMIT;
        }
        *self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, for as long as it is worked at.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn begin(activity: Arc<Activity>) -> Self {
        activity.under_way.fetch_add(1, Ordering::AcqRel);
        Self(activity)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *self.0.stale.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + IDLE_LIMIT;
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}
