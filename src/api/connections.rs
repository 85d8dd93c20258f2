//! Connections: accepted up to a bound, timed while silent, and let finish when the server stops.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::telemetry::SharedMetrics;

/// After a failed `accept` (out of file descriptors, say): time for other connections to end.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A network that loses packets for a moment is no client that reads nothing.
const LEAST_WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The open connections of a listener.
pub struct Connections {
    builder: http1::Builder,
    graceful: GracefulShutdown,
    places: Arc<Semaphore>,
    /// How long an answer may wait for its client to take more of it.
    write_timeout: Duration,
    metrics: SharedMetrics,
}

impl Connections {
    /// None yet.
    pub fn new(limits: &Limits, metrics: SharedMetrics) -> Self {
        let mut builder = http1::Builder::new();
        // Covers the wait for the next request on a kept-alive connection as well as a header that trickles in.
        builder.timer(TokioTimer::new()).header_read_timeout(limits.idle_timeout);
        Self {
            builder,
            graceful: GracefulShutdown::new(),
            places: Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS))),
            write_timeout: limits.idle_timeout.max(LEAST_WRITE_TIMEOUT),
            metrics,
        }
    }

    /// Accepts and serves connections for as long as it is polled.
    pub async fn accept(&self, listener: &TcpListener, router: &Router) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => self.serve(stream, router.clone(), place),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, router: Router, place: OwnedSemaphorePermit) {
        // Answers are small and complete: waiting to fill a packet only adds latency.
        let _ = stream.set_nodelay(true);
        // Who asks and does not read the answer would keep the place for ever.
        limit_writing(&stream, self.write_timeout);
        let service = TowerToHyperService::new(router);
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        let open = self.metrics.connections.clone();
        open.inc();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            open.dec();
            drop(place);
        });
    }

    /// Closes idle connections, and waits until the others have been answered.
    pub async fn finish(self) {
        self.graceful.shutdown().await;
    }
}

/// Ends a connection whose client has taken nothing for so long of what there is for it. The system's own timer, where it has one: neither
/// hyper nor tokio times writing.
fn limit_writing(stream: &TcpStream, timeout: Duration) {
    #[cfg(target_os = "linux")]
    {
        // 0 would be none at all.
        let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, milliseconds);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, timeout);
}
