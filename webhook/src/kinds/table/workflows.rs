//! Argo Workflows. A pod gets the annotations of `podMetadata`, and over these those of its template, of which a workflow
//! may have hundreds: so what was proven is written once, and kept out of templates.

use super::{below, path, paths, with_metadata};
use crate::{
    kinds::{Carrier, Kind, Role},
    path::Path,
};

const GROUP: &str = "argoproj.io";

/// Where a workflow has templates; the last two in steps and tasks.
const TEMPLATES: [&str; 4] = [
    "templateDefaults",
    "templates[*]",
    "templates[*].steps[*][*].inline",
    "templates[*].dag.tasks[*].inline",
];

pub(super) fn kinds() -> Vec<Kind> {
    vec![cron_workflow(), workflow()]
}

fn workflow() -> Kind {
    let (carriers, scaling) = spec("spec");
    Kind::of_operator((GROUP, "Workflow", "workflows"), carriers, scaling)
}

fn cron_workflow() -> Kind {
    let (carriers, mut scaling) = spec("spec.workflowSpec");
    scaling.extend(paths(&[
        "spec.schedule",
        "spec.schedules",
        "spec.timezone",
        "spec.when",
        "spec.suspend",
        "spec.stopStrategy",
        "spec.concurrencyPolicy",
        "spec.startingDeadlineSeconds",
        "spec.successfulJobsHistoryLimit",
        "spec.failedJobsHistoryLimit",
    ]));
    Kind::of_operator((GROUP, "CronWorkflow", "cronworkflows"), carriers, scaling)
}

fn spec(at: &str) -> (Vec<Carrier>, Vec<Path>) {
    let templates = below(at, &TEMPLATES);
    let mut volumes = below(at, &["volumes"]);
    volumes.extend(templates.iter().map(|template| template.join(&path("volumes"))));
    // `podMetadata` may be missing: it is the workflow that is there or not.
    let everywhere = Carrier {
        at: path(at),
        annotations: path("podMetadata.annotations"),
        labels: Some(path("podMetadata.labels")),
        pod: None,
        volumes,
        role: Role::Sealed,
    };
    let cleared = templates.iter().map(|template| with_metadata(&template.to_string(), Role::Cleared));
    let scaling = [
        "activeDeadlineSeconds",
        "archiveLogs",
        "parallelism",
        "podGC",
        "podPriorityClassName",
        "priority",
        "retryStrategy",
        "shutdown",
        "suspend",
        "ttlStrategy",
    ];
    let carriers = std::iter::once(everywhere).chain(cleared).collect();
    (carriers, below(at, &scaling))
}
