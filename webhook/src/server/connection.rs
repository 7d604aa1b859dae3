//! HTTP/1.1 or 2 on one connection. A connection on which nothing happens does not stay, and none stays for ever, so
//! that a new replica and a new certificate get their share.
//!
//! A connection of HTTP/1.1, which is what API servers speak to webhooks, is not closed while it may be used: a request
//! that meets the end on its way is lost, and API servers do not send reviews again. It is ended by an answer that says so.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    http::{HeaderValue, Version, header},
};
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

/// From the handshake to the first request.
pub(super) const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Between requests. API servers give up a connection after 90 s.
pub(super) const IDLE_LIMIT: Duration = Duration::from_mins(2);
const MAX_AGE: Duration = Duration::from_mins(30);
/// Once no more requests are taken, for those that came before.
const LAST_REQUESTS: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADERS: u32 = 16 * 1024;
const MAX_HEADER_BUFFER: usize = 64 * 1024;
const STREAMS: u32 = 256;

/// Serves until the connection ends, or until `stop` and the requests under way are answered. From `leaving` on,
/// API servers should find somebody else.
pub(super) async fn serve(
    connection: TlsStream<Connection>,
    router: Router,
    leaving: CancellationToken,
    stop: CancellationToken,
) {
    let peer = connection.get_ref().0.peer();
    let is_http_2 = connection.get_ref().1.alpn_protocol() == Some(b"h2");
    let activity = Arc::new(Activity::new());
    let noted = activity.clone();
    let service = TowerToHyperService::new(service_fn(move |request: Request<Incoming>| {
        let (under_way, router) = (UnderWay::begin(noted.clone()), router.clone());
        async move {
            let is_http_1 = request.version() == Version::HTTP_11;
            let Ok(mut answer) = router.oneshot(request).await;
            if is_http_1 && under_way.0.is_last() {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            drop(under_way);
            Ok::<_, Infallible>(answer)
        }
    }));
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_LIMIT).max_buf_size(MAX_HEADER_BUFFER);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEADERS);
    let mut conversation = pin!(http.serve_connection(TokioIo::new(connection), service));
    let mut old = Instant::now() + MAX_AGE;
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
            () = leaving.cancelled(), if ends.is_none() && !activity.is_last() => {
                if !is_http_2 {
                    activity.last();
                    continue;
                }
            }
            () = sleep_until(wake) => {
                let now = Instant::now();
                if ends.is_some() {
                    debug!(%peer, "Cut a connection off");
                    return;
                }
                let is_stale = activity.stale() <= now;
                if !is_stale && old > now {
                    continue; // something has happened meanwhile
                }
                if !is_stale && !is_http_2 {
                    activity.last();
                    old = now + MAX_AGE;
                    continue;
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
    /// The next answer of HTTP/1.1 is the last one.
    last: AtomicBool,
    /// When the connection has been idle for too long, if nothing happens.
    stale: Mutex<Instant>,
}

impl Activity {
    fn new() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            last: AtomicBool::new(false),
            stale: Mutex::new(Instant::now() + HEADER_LIMIT),
        }
    }

    fn last(&self) {
        self.last.store(true, Ordering::Release);
    }

    fn is_last(&self) -> bool {
        self.last.load(Ordering::Acquire)
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
