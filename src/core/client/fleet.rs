//! Talking to agents, as the long protocols see it: so that they can be tried on agents that exist only in memory, with a power cut after
//! every message.

use std::future::Future;

use serde_json::Value;

use super::error::ExchangeError;
use super::exchange::{Answer, Client};
use super::open::ClientError;
use crate::core::clock::Clock;
use crate::core::config::DispatcherConfig;
use crate::core::registry::Target;
use crate::core::types::Serial;

/// What became of one request.
pub type Reply = Result<Answer, ExchangeError>;

/// The agents, called with the identities that we held when this was opened.
pub trait Fleet: Clone + Send + Sync + 'static {
    /// `POST` with whatever identity the agent trusts.
    fn post(
        &self,
        target: Target,
        path: &'static str,
        body: Value,
    ) -> impl Future<Output = Reply> + Send + 'static;

    /// `POST` with this identity and no other; `None` if we do not hold it.
    fn post_as(
        &self,
        serial: Serial,
        target: Target,
        path: &'static str,
        body: Value,
    ) -> impl Future<Output = Option<Reply>> + Send + 'static;
}

/// How to reach the agents with the identities that we hold now.
pub trait Network {
    type Fleet: Fleet;

    /// # Errors
    /// There is no identity, no CA, or no revocation journal that can be read.
    fn open(&self) -> Result<Self::Fleet, ClientError>;
}

/// The real one.
#[derive(Clone, Debug)]
pub struct Live {
    pub config: DispatcherConfig,
    pub clock: Clock,
}

impl Network for Live {
    type Fleet = Client;

    fn open(&self) -> Result<Client, ClientError> {
        Client::load(&self.config, self.clock.clone()).map(|(client, _)| client)
    }
}

impl Fleet for Client {
    fn post(
        &self,
        target: Target,
        path: &'static str,
        body: Value,
    ) -> impl Future<Output = Reply> + Send + 'static {
        let client = self.clone();
        let body = body.to_string().into_bytes();
        async move {
            let sent = client.exchange(&target, hyper::Method::POST, path, Some(body));
            sent.await
        }
    }

    fn post_as(
        &self,
        serial: Serial,
        target: Target,
        path: &'static str,
        body: Value,
    ) -> impl Future<Output = Option<Reply>> + Send + 'static {
        let client = self.clone();
        let body = body.to_string().into_bytes();
        async move { client.exchange_as(&serial, &target, path, body).await }
    }
}

/// The result of a task that ended without one.
pub fn no_worker() -> ExchangeError {
    ExchangeError::Lost("no response from worker".to_owned())
}

/// What an agent says with status 200: `status` `ok`, or its `error`.
///
/// # Errors
/// The words of the agent, or of the exchange that failed.
pub fn accepted(reply: &Reply) -> Result<&Answer, String> {
    match reply {
        Err(error) => Err(error.to_string()),
        Ok(answer) if answer.body.get("status").and_then(Value::as_str) == Some("ok") => Ok(answer),
        Ok(answer) => Err(answer
            .body
            .get("error")
            .and_then(Value::as_str)
            .unwrap_or("the answer has no status ok")
            .to_owned()),
    }
}
