//! Signals that are somebody else's to handle.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Signals received from now on; made before whoever they are for exists, so that none is lost.
pub struct ForwardedSignals(mpsc::UnboundedReceiver<i32>);

impl ForwardedSignals {
    /// Takes these signals over from their default actions.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn catch(numbers: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for number in numbers {
            let mut stream = signal(SignalKind::from_raw(number))?;
            let sender = sender.clone();
            tokio::spawn(
                async move { while stream.recv().await.is_some() && sender.send(number).is_ok() {} },
            );
        }
        Ok(Self(receiver))
    }

    /// The next one.
    pub async fn next(&mut self) -> i32 {
        match self.0.recv().await {
            Some(number) => number,
            // The senders live as long as the event loop.
            None => std::future::pending().await,
        }
    }
}
