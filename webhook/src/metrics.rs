//! The webhook's numbers. No label takes a value that whoever asks can invent.

use std::time::Duration;

use kube::core::admission::Operation;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Seconds: from what a decision takes that needs nobody to what the API server waits for.
const REVIEW_SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 5.0];

/// Bytes: from a bare pod to what is refused.
const REQUEST_BYTES: [f64; 8] =
    [2048.0, 4096.0, 8192.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 8_388_608.0];

/// All metrics. Clones count together.
#[derive(Clone)]
pub(crate) struct Metrics {
    reviews: Family<ReviewLabels, Counter>,
    seconds: Family<WebhookLabels, Histogram, fn() -> Histogram>,
    /// Requests that are no review that could be read, or were too many.
    turned_away: Family<StatusLabels, Counter>,
    /// Reviews under way.
    pub(crate) in_flight: Gauge,
    /// What the API server sent.
    pub(crate) request_bytes: Histogram,
    /// When the certificate that callers are shown ends.
    pub(crate) certificate_expiry: Gauge,
    /// Certificate authorities by which the API server believes us and our replicas.
    pub(crate) authorities: Gauge,
    /// Writes of the configuration objects, for whatever reason.
    pub(crate) registrations: Counter,
    /// Attempts to read or write the configuration objects that failed.
    pub(crate) registration_failures: Counter,
}

/// Which of the two webhooks was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Webhook {
    Mutate,
    Validate,
}

impl Webhook {
    /// As it stands in labels, in the log, and in the path of its URL.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
        }
    }
}

/// What came of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Decision {
    Allowed,
    Patched,
    Denied,
}

impl Decision {
    /// As it stands in labels and in the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Patched => "patched",
            Self::Denied => "denied",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    webhook: &'static str,
    operation: &'static str,
    decision: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookLabels {
    webhook: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    webhook: &'static str,
    reason: &'static str,
}

impl Metrics {
    /// Adds all metrics to `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(REVIEW_SECONDS);
        let this = Self {
            reviews: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            turned_away: Family::default(),
            in_flight: Gauge::default(),
            request_bytes: Histogram::new(REQUEST_BYTES),
            certificate_expiry: Gauge::default(),
            authorities: Gauge::default(),
            registrations: Counter::default(),
            registration_failures: Counter::default(),
        };
        let own = registry.sub_registry_with_prefix("hadoop_token_csi_webhook");
        own.register("reviews", "What was asked, and what came of it", this.reviews.clone());
        own.register_with_unit("review", "How long reviews took", Unit::Seconds, this.seconds.clone());
        own.register("turned_away", "Requests that were not reviewed, and why", this.turned_away.clone());
        own.register("in_flight", "Reviews under way", this.in_flight.clone());
        own.register_with_unit("request", "Size of reviews", Unit::Bytes, this.request_bytes.clone());
        own.register(
            "certificate_expiry_timestamp_seconds",
            "When the certificate that is shown to the API server ends",
            this.certificate_expiry.clone(),
        );
        own.register(
            "authorities",
            "Certificate authorities by which the API server believes this replica and the others",
            this.authorities.clone(),
        );
        own.register("registrations", "Writes of the configuration objects", this.registrations.clone());
        own.register(
            "registration_failures",
            "Failed attempts to look after the configuration objects",
            this.registration_failures.clone(),
        );
        this
    }

    /// A review has ended.
    pub(crate) fn reviewed(
        &self,
        webhook: Webhook,
        operation: &Operation,
        decision: Decision,
        reason: Option<&'static str>,
        time: Duration,
    ) {
        let labels = ReviewLabels {
            webhook: webhook.name(),
            operation: operation_name(operation),
            decision: decision.name(),
            reason: reason.unwrap_or_default(),
        };
        self.reviews.get_or_create(&labels).inc();
        self.seconds.get_or_create(&WebhookLabels { webhook: webhook.name() }).observe(time.as_secs_f64());
    }

    /// A request was not reviewed.
    pub(crate) fn turned_away(&self, webhook: Webhook, reason: &'static str) {
        self.turned_away.get_or_create(&StatusLabels { webhook: webhook.name(), reason }).inc();
    }
}

/// As the API server spells it.
pub(crate) fn operation_name(operation: &Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// Counts in a gauge for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn reviews_are_counted_by_what_came_of_them() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let took = Duration::from_millis(3);
        metrics.reviewed(Webhook::Mutate, &Operation::Create, Decision::Patched, None, took);
        metrics.reviewed(
            Webhook::Validate,
            &Operation::Connect,
            Decision::Denied,
            Some("NOT_SUBMITTER"),
            took,
        );
        metrics.turned_away(Webhook::Mutate, "REVIEW_TOO_LARGE");
        metrics.request_bytes.observe(3000.0);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"hadoop_token_csi_webhook_reviews_total{webhook="mutate",operation="CREATE",decision="patched",reason=""} 1"#,
            r#"hadoop_token_csi_webhook_reviews_total{webhook="validate",operation="CONNECT",decision="denied",reason="NOT_SUBMITTER"} 1"#,
            r#"hadoop_token_csi_webhook_turned_away_total{webhook="mutate",reason="REVIEW_TOO_LARGE"} 1"#,
            r#"hadoop_token_csi_webhook_review_seconds_bucket{le="0.005",webhook="mutate"} 1"#,
            r#"hadoop_token_csi_webhook_request_bytes_bucket{le="4096.0"} 1"#,
        ] {
            assert!(text.lines().any(|there| there == line), "{line} is not in\n{text}");
        }
    }
}
