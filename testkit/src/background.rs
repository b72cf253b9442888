//! An http server on a thread of its own.
//!
//! A test may then block on a command that talks to the server, with or without an async runtime of its own.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Time for connections to end after the server was told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A server on 127.0.0.1; dropping it closes all its connections.
#[derive(Debug)]
pub struct Background {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Serves `router` on a port that the system picks.
    #[must_use]
    pub fn serve(router: Router) -> Self {
        Self::run(async move |listener| {
            // Ends only by being dropped.
            let _ended = axum::serve(listener, router).await;
        })
    }

    /// Accepts connections and hands each to `handle`, for servers that do not even speak http properly.
    #[must_use]
    pub fn raw<F>(handle: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::run(async move |listener| {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(handle(stream));
            }
        })
    }

    /// Runs `serve` until this is dropped.
    fn run<F>(serve: impl FnOnce(TcpListener) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()>,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build();
            let runtime = runtime.unwrap_or_else(|error| panic!("start a runtime: {error}"));
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0")
                    .await
                    .unwrap_or_else(|error| panic!("bind: {error}"));
                // The other side waits for it; if it is gone, so is the test.
                let _gone = bound.send(listener.local_addr());
                tokio::select! {
                    () = serve(listener) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(STOP_TIMEOUT);
        });
        let address = address
            .recv()
            .ok()
            .and_then(Result::ok)
            .unwrap_or_else(|| panic!("the server did not start"));
        Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Returns where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panicked: the test has seen that from its requests.
            let _panicked = thread.join();
        }
    }
}
