//! The built-in kinds: those of Kubernetes here, those of operators in modules. Where an operator takes its pods'
//! annotations from was read in the operator; docs/workloads.md shows the same to users.

mod batch;
mod kubeflow;
mod workflows;

use super::{Carrier, Kind, Role};
use crate::path::Path;

/// All of them.
pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds = kubernetes();
    kinds.extend(kubeflow::kinds());
    kinds.extend(batch::kinds());
    kinds.extend(workflows::kinds());
    kinds
}

/// What Kubernetes has itself. Only the template counts as content: all else scales, selects and times.
fn kubernetes() -> Vec<Kind> {
    let template = |group, kind, resource, at: &str, controller: &str| Kind {
        content: paths(&[at]),
        controllers: vec![format!("system:serviceaccount:kube-system:{controller}")],
        ..Kind::new(group, kind, resource, vec![Carrier::template(path(at))])
    };
    let pod =
        Kind { content: paths(&["spec"]), ..Kind::new("", "Pod", "pods", vec![Carrier::template(path(""))]) };
    // StatefulSets and DaemonSets keep former templates in these, and pods are made from them too.
    let revision = Kind {
        content: paths(&["data"]),
        ..Kind::new(
            "apps",
            "ControllerRevision",
            "controllerrevisions",
            vec![Carrier::template(path("data.spec.template"))],
        )
    };
    vec![
        pod,
        revision,
        template(
            "",
            "ReplicationController",
            "replicationcontrollers",
            "spec.template",
            "replication-controller",
        ),
        template("apps", "DaemonSet", "daemonsets", "spec.template", "daemon-set-controller"),
        template("apps", "Deployment", "deployments", "spec.template", "deployment-controller"),
        template("apps", "ReplicaSet", "replicasets", "spec.template", "replicaset-controller"),
        template("apps", "StatefulSet", "statefulsets", "spec.template", "statefulset-controller"),
        template("batch", "CronJob", "cronjobs", "spec.jobTemplate.spec.template", "cronjob-controller"),
        template("batch", "Job", "jobs", "spec.template", "job-controller"),
    ]
}

impl Kind {
    /// A kind with nothing but carriers.
    fn new(group: &str, kind: &str, resource: &str, carriers: Vec<Carrier>) -> Self {
        Self {
            group: group.to_owned(),
            kind: kind.to_owned(),
            resource: resource.to_owned(),
            carriers,
            copies: Vec::new(),
            content: Vec::new(),
            scaling: Vec::new(),
            controllers: Vec::new(),
        }
    }

    /// A kind of an operator's: all of its spec is content, but for what is `scaling`.
    fn of_operator(
        (group, kind, resource): (&str, &str, &str),
        carriers: Vec<Carrier>,
        scaling: Vec<Path>,
    ) -> Self {
        Self { content: paths(&["spec"]), scaling, ..Self::new(group, kind, resource, carriers) }
    }
}

/// Templates below `at`.
fn templates(at: &str, below: &[&str]) -> Vec<Carrier> {
    below.iter().map(|below| Carrier::template(path(at).join(&path(below)))).collect()
}

/// Annotations and labels in maps of these names at `at`, without a pod spec.
fn bare(at: &str, role: Role) -> Carrier {
    Carrier {
        at: path(at),
        annotations: path("annotations"),
        labels: Some(path("labels")),
        pod: None,
        volumes: Vec::new(),
        role,
    }
}

/// What has `metadata` like a template, and no pod spec.
fn with_metadata(at: &str, role: Role) -> Carrier {
    Carrier { pod: None, role, ..Carrier::template(path(at)) }
}

fn paths(texts: &[&str]) -> Vec<Path> {
    below("", texts)
}

/// Paths that begin with `at`.
fn below(at: &str, texts: &[&str]) -> Vec<Path> {
    texts.iter().map(|text| path(at).join(&path(text))).collect()
}

#[expect(clippy::expect_used, reason = "the table is part of the program, and every test reads it")]
fn path(text: &str) -> Path {
    text.parse().expect("the table has paths only")
}
