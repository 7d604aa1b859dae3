//! What dashboards and alerts are made of, at `/metrics` of the health address. Every label has few values, known
//! beforehand: no pod, user, namespace or node is ever one.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    audit::{Action, Decision},
    events::EventCounters,
    ledger::{Ledger, Phase},
};

/// Seconds: from what a call takes when all is well to what it takes until it is given up.
const CALL_SECONDS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Seconds: from a fast disk to the deadline of a record.
const AUDIT_SECONDS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// All metrics. Clones count together.
#[derive(Clone)]
pub(crate) struct Metrics {
    clusters: Arc<BTreeSet<Arc<str>>>,
    decisions: Family<DecisionLabels, Counter>,
    calls: Family<CallLabels, Histogram, fn() -> Histogram>,
    issued: Family<ClusterLabels, Counter>,
    renewed: Family<ClusterLabels, Counter>,
    cancelled: Family<WhyLabels, Counter>,
    let_go: Family<WhyLabels, Counter>,
    reaper_failures: Family<ClusterLabels, Counter>,
    revocations: Family<ReasonLabels, Counter>,
    hadoop: Family<HadoopLabels, Histogram, fn() -> Histogram>,
    waiting: Family<ClusterLabels, Gauge>,
    rate_limited: Family<ScopeLabels, Counter>,
    /// Calls of strangers that neither log nor audit log tells of.
    pub(crate) unrecorded: Counter,
    /// Records on their way to the disk.
    pub(crate) audit_queue: Gauge,
    /// Batches of records that could not be written.
    pub(crate) audit_failures: Counter,
    /// Records that will never be written.
    pub(crate) audit_lost: Counter,
    /// How long a batch of records took to be safe.
    pub(crate) audit_seconds: Histogram,
    /// Node plugins that listen for changes.
    pub(crate) open_watches: Gauge,
    /// 1 at the replica that leads.
    pub(crate) leader: Gauge,
    /// Entries of the ledger that the reaper works at; 0 at replicas that do not lead.
    pub(crate) reaping: Gauge,
    /// Pods that have had our volume for minutes and are not in the ledger; 0 at replicas that do not lead.
    pub(crate) pods_without_tokens: Gauge,
}

/// Why tokens were cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cancelled {
    /// Their volume has ended.
    Released,
    /// Their volume may not keep them.
    Revoked,
    /// They reached no volume.
    NotHandedOver,
    /// Their pod has ended, and nobody released them.
    Ended,
    /// Their object in the ledger was deleted while the pod lived.
    Deleted,
    /// Nobody learnt their identifier.
    Lost,
}

impl Cancelled {
    /// As it stands in labels and audit records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Released => "RELEASED",
            Self::Revoked => "REVOKED",
            Self::NotHandedOver => "NOT_HANDED_OVER",
            Self::Ended => "POD_ENDED",
            Self::Deleted => "DELETED",
            Self::Lost => "LOST",
        }
    }
}

/// Why the ledger forgot a token that was not cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LetGo {
    /// It has ended by itself.
    Expired,
    /// Another pod has it too.
    Shared,
    /// An operator said so.
    Released,
    /// Its answer was lost, and there never was one.
    NeverIssued,
}

impl LetGo {
    /// As it stands in labels and audit records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Expired => "EXPIRED",
            Self::Shared => "SHARED",
            Self::Released => "RELEASED_BY_OPERATOR",
            Self::NeverIssued => "NEVER_ISSUED",
        }
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    call: &'static str,
    decision: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: &'static str,
}

/// Only [`Metrics::cluster`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabels {
    cluster: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HadoopLabels {
    cluster: Arc<str>,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabels {
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ScopeLabels {
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

/// The ledger's tokens, by how far they have come.
struct Phases(Ledger);

impl fmt::Debug for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Phases")
    }
}

impl Collector for Phases {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let tokens = Family::<PhaseLabels, Gauge>::default();
        let of = |phase| tokens.get_or_create_owned(&PhaseLabels { phase });
        let [requested, active, cancelling] = ["requested", "active", "cancelling"].map(of);
        for entry in self.0.all() {
            match entry.phase {
                Phase::Requested => requested.inc(),
                Phase::Active => active.inc(),
                Phase::Cancelling => cancelling.inc(),
            };
        }
        let help = "Tokens in the ledger, by how far they have come";
        tokens.encode(encoder.encode_descriptor("ledger_tokens", help, None, tokens.metric_type())?)
    }
}

impl Metrics {
    /// Adds all metrics to `registry`. Of clusters, only `clusters` are ever named.
    pub(crate) fn register<'a>(registry: &mut Registry, clusters: impl IntoIterator<Item = &'a str>) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(CALL_SECONDS);
        let this = Self {
            clusters: Arc::new(clusters.into_iter().map(Arc::from).collect()),
            decisions: Family::default(),
            calls: Family::new_with_constructor(histogram),
            issued: Family::default(),
            renewed: Family::default(),
            cancelled: Family::default(),
            let_go: Family::default(),
            reaper_failures: Family::default(),
            revocations: Family::default(),
            hadoop: Family::new_with_constructor(histogram),
            waiting: Family::default(),
            rate_limited: Family::default(),
            unrecorded: Counter::default(),
            audit_queue: Gauge::default(),
            audit_failures: Counter::default(),
            audit_lost: Counter::default(),
            audit_seconds: Histogram::new(AUDIT_SECONDS),
            open_watches: Gauge::default(),
            leader: Gauge::default(),
            reaping: Gauge::default(),
            pods_without_tokens: Gauge::default(),
        };
        let own = registry.sub_registry_with_prefix("hadoop_token_csi");
        own.register("decisions", "What was asked for, and what came of it", this.decisions.clone());
        own.register_with_unit(
            "call",
            "How long calls of node plugins took",
            Unit::Seconds,
            this.calls.clone(),
        );
        own.register("tokens_issued", "Tokens handed to node plugins", this.issued.clone());
        own.register("tokens_renewed", "Renewals of tokens", this.renewed.clone());
        own.register("tokens_cancelled", "Tokens cancelled, and why", this.cancelled.clone());
        own.register(
            "revocations",
            "Volumes that may not keep their tokens, and why",
            this.revocations.clone(),
        );
        own.register_with_unit("hadoop", "How long NameNodes took", Unit::Seconds, this.hadoop.clone());
        own.register("hadoop_waiting", "Calls that wait for their turn at a NameNode", this.waiting.clone());
        own.register("rate_limited", "Calls refused for their number", this.rate_limited.clone());
        own.register("unrecorded", "Calls of strangers that were only counted", this.unrecorded.clone());
        own.register("audit_queue", "Audit records on their way to the disk", this.audit_queue.clone());
        own.register("audit_failures", "Failed attempts to write audit records", this.audit_failures.clone());
        own.register("audit_lost", "Audit records that were never written", this.audit_lost.clone());
        own.register_with_unit(
            "audit_write",
            "How long audit records took to be safe",
            Unit::Seconds,
            this.audit_seconds.clone(),
        );
        own.register("open_watches", "Node plugins that listen for changes", this.open_watches.clone());
        this.register_reaper(own);
        this
    }

    fn register_reaper(&self, own: &mut Registry) {
        own.register("leader", "Whether this replica leads, and reaps", self.leader.clone());
        own.register("reaping", "Tokens that have to end and have not", self.reaping.clone());
        own.register("reaper_failures", "Failed attempts to end a token", self.reaper_failures.clone());
        own.register(
            "tokens_let_go",
            "Tokens forgotten without being cancelled, and why",
            self.let_go.clone(),
        );
        own.register(
            "pods_without_tokens",
            "Pods that have run with our volume for minutes and are not in the ledger",
            self.pods_without_tokens.clone(),
        );
    }

    /// Adds the numbers of Kubernetes events.
    pub(crate) fn register_events(registry: &mut Registry, events: EventCounters) {
        let own = registry.sub_registry_with_prefix("hadoop_token_csi");
        own.register("events_written", "Kubernetes events on pods", events.written);
        own.register("events_failed", "Kubernetes events that the API server did not take", events.failed);
        own.register("events_dropped", "Kubernetes events that were too many", events.dropped);
    }

    /// Adds the number of tokens in `ledger`, counted whenever somebody asks.
    pub(crate) fn register_ledger(registry: &mut Registry, ledger: Ledger) {
        let own = registry.sub_registry_with_prefix("hadoop_token_csi");
        own.register_collector(Box::new(Phases(ledger)));
    }

    /// Counts a decision, for its reason when there is one. The audit log does this for every record.
    pub(crate) fn decided(&self, call: Action, decision: Decision, reason: Option<&'static str>) {
        let labels = DecisionLabels {
            call: call.name(),
            decision: decision.name(),
            reason: reason.unwrap_or_default(),
        };
        self.decisions.get_or_create(&labels).inc();
    }

    /// A node plugin's call took so long.
    pub(crate) fn took(&self, call: Action, time: Duration) {
        self.calls.get_or_create(&CallLabels { call: call.name() }).observe(time.as_secs_f64());
    }

    /// A NameNode's call took so long.
    pub(crate) fn hadoop_took(&self, cluster: &str, operation: &'static str, time: Duration) {
        let ClusterLabels { cluster } = self.cluster(cluster);
        self.hadoop.get_or_create(&HadoopLabels { cluster, operation }).observe(time.as_secs_f64());
    }

    /// A token was handed over.
    pub(crate) fn issued(&self, cluster: &str) {
        self.issued.get_or_create(&self.cluster(cluster)).inc();
    }

    /// A token was renewed.
    pub(crate) fn renewed(&self, cluster: &str) {
        self.renewed.get_or_create(&self.cluster(cluster)).inc();
    }

    /// A token was cancelled.
    pub(crate) fn cancelled(&self, why: Cancelled) {
        self.cancelled.get_or_create(&WhyLabels { why: why.name() }).inc();
    }

    /// The ledger forgot a token that was not cancelled.
    pub(crate) fn let_go(&self, why: LetGo) {
        self.let_go.get_or_create(&WhyLabels { why: why.name() }).inc();
    }

    /// An attempt to end a token failed.
    pub(crate) fn reaper_failed(&self, cluster: &str) {
        self.reaper_failures.get_or_create(&self.cluster(cluster)).inc();
    }

    /// A volume lost its tokens.
    pub(crate) fn revoked(&self, reason: &'static str) {
        self.revocations.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Calls that wait for a cluster.
    pub(crate) fn waiting(&self, cluster: &str) -> Gauge {
        self.waiting.get_or_create(&self.cluster(cluster)).clone()
    }

    /// A call was refused for the number of those before it.
    pub(crate) fn rate_limited(&self, scope: &'static str) {
        self.rate_limited.get_or_create(&ScopeLabels { scope }).inc();
    }

    /// The label of a configured cluster; of no other, whatever a caller says.
    fn cluster(&self, name: &str) -> ClusterLabels {
        let cluster = self.clusters.get(name).cloned().unwrap_or_else(|| Arc::from("unknown"));
        ClusterLabels { cluster }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn decisions_are_counted_by_call_and_reason() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, ["main"]);
        metrics.decided(Action::Issue, Decision::Granted, None);
        metrics.decided(Action::Issue, Decision::Refused, Some("USER_DENIED"));
        metrics.decided(Action::Issue, Decision::Refused, Some("USER_DENIED"));
        let text = text(&registry);
        for line in [
            r#"hadoop_token_csi_decisions_total{call="issue",decision="granted",reason=""} 1"#,
            r#"hadoop_token_csi_decisions_total{call="issue",decision="refused",reason="USER_DENIED"} 2"#,
        ] {
            assert!(text.lines().any(|there| there == line), "{text}");
        }
    }

    #[test]
    fn no_label_takes_a_value_that_a_caller_can_invent() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, ["main", "other"]);
        for number in 0..1000 {
            let invented = format!("cluster-{number}");
            metrics.issued(&invented);
            metrics.renewed(&invented);
            metrics.reaper_failed(&invented);
            metrics.hadoop_took(&invented, "get", Duration::ZERO);
            metrics.waiting(&invented).inc();
        }
        metrics.issued("main");
        // Every other label is an enum's name or a reason, a `&'static str`.
        let text = text(&registry);
        assert!(!text.contains("cluster-") && text.contains(r#"cluster="main""#), "{text}");
        assert!(text.lines().count() < 100, "{text}");
    }
}
