//! What a NameNode does with tokens during a test, in its own words: its audit log and its count of live tokens.

use std::time::Duration;

use anyhow::{Result, ensure};
use bed::{
    namenode::{NameNode, TokenAction, TokenEvent},
    pod::Running,
    process::until,
};

use crate::GONE_LIMIT;

/// From the end of the pod, or of an outage, to the end of its token.
const CANCEL_LIMIT: Duration = Duration::from_secs(60);

/// Where a NameNode stood when a test began.
pub(crate) struct Tally<'bed> {
    name_node: &'bed NameNode,
    live: u64,
    events: usize,
}

impl<'bed> Tally<'bed> {
    pub(crate) async fn begin(name_node: &'bed NameNode) -> Result<Self> {
        let live = name_node.live_tokens().await?;
        Ok(Self { name_node, live, events: name_node.token_events()?.len() })
    }

    /// What it did since, and did not refuse.
    pub(crate) fn events(&self, action: TokenAction) -> Result<Vec<TokenEvent>> {
        let mut events = self.name_node.token_events()?.split_off(self.events);
        events.retain(|event| event.action == action && event.allowed);
        Ok(events)
    }

    /// Every token that was issued meanwhile has been cancelled, and the NameNode knows no more than at the beginning.
    pub(crate) async fn ends(&self) -> Result<()> {
        let issued = self.events(TokenAction::Issued)?;
        for token in &issued {
            ensure!(token.sequence_number.is_some(), "has no number: {token:?}");
        }
        until("cancelled: every token", CANCEL_LIMIT, async || {
            let cancelled = self.events(TokenAction::Cancelled)?;
            let is_cancelled = |token: &&TokenEvent| {
                cancelled.iter().any(|event| event.sequence_number == token.sequence_number)
            };
            let left: Vec<_> = issued.iter().filter(|token| !is_cancelled(token)).collect();
            ensure!(left.is_empty(), "never cancelled: {left:?}");
            let live = self.name_node.live_tokens().await?;
            ensure!(live <= self.live, "{live} tokens are live, there were {}", self.live);
            Ok(())
        })
        .await
    }

    /// The same, once these pods are deleted.
    pub(crate) async fn ends_after(&self, pods: &[Running]) -> Result<()> {
        for pod in pods {
            pod.delete(GONE_LIMIT).await?;
        }
        self.ends().await
    }
}
