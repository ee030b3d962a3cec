//! Kubernetes' container runtime interface, as a kubelet would use it.
//!
//! Its messages are written by the numbers of `k8s.io/cri-api`, `runtime.v1`, of which a test needs a few: a generated
//! client would be most of what this crate compiles.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::protobuf::{Fields, Message};

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a runtime that serves the interface.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    connection: SendRequest<Bytes>,
}

impl Cri {
    /// Connects to a Unix socket.
    pub fn connect(socket: &Path) -> Cri {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let connection = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.expect("the socket");
            let (requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::spawn(connection);
            requests
        });
        Cri { runtime, connection }
    }

    /// Calls a method of the runtime's service, which must succeed.
    #[track_caller]
    pub fn call(&self, method: &str, message: Message) -> Fields {
        match self.try_call(&format!("RuntimeService/{method}"), message) {
            Ok(answer) => answer,
            Err(error) => panic!("{method}: {error}"),
        }
    }

    /// Whether the runtime has this image.
    pub fn has_image(&self, name: &str) -> bool {
        let message = Message::new().message(1, Message::new().text(1, name));
        let answer = self.try_call("ImageService/ImageStatus", message);
        answer.expect("the status of an image").has(1)
    }

    /// Calls `SERVICE/METHOD`; an error is its status and text.
    pub fn try_call(&self, method: &str, message: Message) -> Result<Fields, String> {
        let request = Request::post(format!("http://localhost/runtime.v1.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let message = message.into_bytes();
        // Not compressed, and its length.
        let mut body = vec![0];
        body.extend_from_slice(&(message.len() as u32).to_be_bytes());
        body.extend_from_slice(&message);
        let call = self.exchange(request, body.into());
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, call)
                .await
                .unwrap_or_else(|_| Err("no answer".to_owned()))
        })
    }

    async fn exchange(&self, request: Request<()>, body: Bytes) -> Result<Fields, String> {
        let text = |error: h2::Error| error.to_string();
        let mut connection = self.connection.clone().ready().await.map_err(text)?;
        let (answer, mut stream) = connection.send_request(request, false).map_err(text)?;
        stream.send_data(body, true).map_err(text)?;
        let (head, mut body) = answer.await.map_err(text)?.into_parts();
        let mut message = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece.map_err(text)?;
            // What was read makes room for more.
            body.flow_control().release_capacity(piece.len()).map_err(text)?;
            message.extend_from_slice(&piece);
        }
        // An answer without a body has them in its head.
        let trailers = body.trailers().await.map_err(text)?.unwrap_or(head.headers);
        let field = |name: &str| {
            let value = trailers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        match field("grpc-status").as_str() {
            "0" => Ok(Fields::read(message.get(5..).unwrap_or_default())),
            status => Err(format!("status {status}: {}", field("grpc-message"))),
        }
    }
}
