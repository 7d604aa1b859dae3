//! The built-in kinds.

use super::{Carrier, Kind};

/// All of them.
pub(super) fn kinds() -> Vec<Kind> {
    let template = |group: &str, kind: &str, resource: &str, at: &str, controllers: &[&str]| Kind {
        group: group.to_owned(),
        kind: kind.to_owned(),
        resource: resource.to_owned(),
        carriers: vec![Carrier::template(at.split('.').filter(|key| !key.is_empty()).collect())],
        content: Vec::new(),
        scaling: Vec::new(),
        controllers: controllers
            .iter()
            .map(|name| format!("system:serviceaccount:kube-system:{name}"))
            .collect(),
    };
    vec![
        template("", "Pod", "pods", "", &[]),
        template("apps", "Deployment", "deployments", "spec.template", &["deployment-controller"]),
        template("apps", "ReplicaSet", "replicasets", "spec.template", &["replicaset-controller"]),
        template("apps", "StatefulSet", "statefulsets", "spec.template", &["statefulset-controller"]),
        template("apps", "DaemonSet", "daemonsets", "spec.template", &["daemon-set-controller"]),
        template("batch", "Job", "jobs", "spec.template", &["job-controller"]),
        template("batch", "CronJob", "cronjobs", "spec.jobTemplate.spec.template", &["cronjob-controller"]),
    ]
}
