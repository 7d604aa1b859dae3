//! Argo Workflows. A pod gets the annotations of `podMetadata`, and over these those of its template, of which a workflow
//! may have hundreds: so what was proven is written once, and kept out of templates.

use super::{below, path, paths, with_metadata};
use crate::{
    kinds::{Carrier, Kind, Role},
    path::Path,
};

const GROUP: &str = "argoproj.io";

/// Where a workflow has templates.
const TEMPLATES: [&str; 2] = ["templateDefaults", "templates[*]"];

/// Where a template has further ones: in steps and tasks.
const INLINE: [&str; 2] = ["steps[*][*].inline", "dag.tasks[*].inline"];

pub(super) fn kinds() -> Vec<Kind> {
    vec![cron_workflow(), workflow()]
}

/// What a workflow refers to is kept in its status and run from there, and whoever may change a workflow may change
/// that. A stored spec has been merged with the workflow's own, stamps and all.
fn workflow() -> Kind {
    const STORED_SPEC: &str = "status.storedWorkflowTemplateSpec";
    const STORED_TEMPLATES: &str = "status.storedTemplates";
    let (carriers, mut scaling) = spec("spec");
    let (mut copies, stored_scaling) = spec(STORED_SPEC);
    let stored =
        below(STORED_TEMPLATES, &["*"]).into_iter().chain(below(&format!("{STORED_TEMPLATES}.*"), &INLINE));
    copies.extend(stored.map(|template| with_metadata(&template.to_string(), Role::Cleared)));
    scaling.extend(stored_scaling);
    let mut kind = Kind::of_operator((GROUP, "Workflow", "workflows"), carriers, scaling);
    kind.content.extend(paths(&[STORED_SPEC, STORED_TEMPLATES]));
    Kind { copies, ..kind }
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
    let mut templates = below(at, &TEMPLATES);
    templates.extend(below(&format!("{at}.templates[*]"), &INLINE));
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
