//! The configuration file: read, checked as a whole, and turned into parts that cannot be wrong. Every mistake is told at
//! once. Nothing here reaches the network.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, sync::Arc};

use identity::{
    is_object_name,
    owners::{OwnerKind, OwnerKinds},
};
use process::config::Mistakes;
use serde::Deserialize;

use crate::{
    certificate, conditions,
    controllers::{self, NamedController, NamedControllers},
    decoration::Scope,
    injection,
    kinds::{KindSection, Kinds},
    origin::Inherit,
    registration::{self, Entry},
    sealing::{self, Sealing},
    server,
    validation::Interactive,
};

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    listen: String,
    health_address: String,
    seal: sealing::Section,
    #[serde(default)]
    scope: Scope,
    #[serde(default = "kube_system")]
    exempt_namespaces: Vec<String>,
    #[serde(default)]
    workloads: Vec<KindSection>,
    #[serde(default)]
    controllers: Vec<NamedController>,
    #[serde(default)]
    owners: Vec<OwnerKind>,
    #[serde(default)]
    inherit: Vec<Inherit>,
    #[serde(default)]
    injection: injection::Config,
    #[serde(default)]
    interactive: Interactive,
    #[serde(default)]
    certificate: certificate::Section,
    #[serde(default)]
    registration: registration::Section,
    #[serde(default)]
    limits: server::Limits,
}

fn kube_system() -> Vec<String> {
    vec!["kube-system".to_owned()]
}

/// The configuration, checked.
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) health_address: SocketAddr,
    pub(crate) sealing: Arc<Sealing>,
    pub(crate) scope: Scope,
    pub(crate) exempt: BTreeSet<String>,
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) controllers: NamedControllers,
    pub(crate) owners: OwnerKinds,
    pub(crate) inherit: Vec<Inherit>,
    pub(crate) injection: injection::Config,
    pub(crate) interactive: Interactive,
    pub(crate) certificate: certificate::Source,
    pub(crate) registration: registration::Section,
    /// Of what API servers ask.
    pub(crate) entries: Vec<Entry>,
    pub(crate) limits: server::Limits,
}

impl Config {
    /// Reads the file at `path` and everything it names.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        Ok(Self::check(process::config::load(path)?)?)
    }

    fn check(file: File) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let listen = mistakes.take("listen", file.listen.parse());
        let health_address = mistakes.take("healthAddress", file.health_address.parse());
        let sealing = mistakes.take("seal", Sealing::load(file.seal));
        for name in &file.exempt_namespaces {
            mistakes.require("exemptNamespaces", is_object_name(name), &format!("{name:?} is not a name"));
        }
        for entry in &file.inherit {
            let names = std::iter::once(&entry.namespace).chain(&entry.service_accounts);
            for name in names {
                mistakes.require("inherit", is_object_name(name), &format!("{name:?} is not a name"));
            }
        }
        let owners = mistakes.take_all("owners", OwnerKinds::new(file.owners));
        for mistake in owners.iter().flat_map(|owners| controllers::unread(&file.controllers, owners)) {
            mistakes.add(format!("controllers: {mistake}"));
        }
        let kinds = mistakes.take_all("workloads", Kinds::new(file.workloads));
        let controllers = kinds.as_ref().and_then(|kinds| {
            mistakes.take_all("controllers", NamedControllers::new(kinds, file.controllers))
        });
        let certificate = mistakes.take_all("certificate", file.certificate.open());
        for mistake in file.limits.mistakes().into_iter().chain(file.registration.mistakes()) {
            mistakes.add(mistake);
        }
        match (listen, health_address, sealing, kinds, controllers, owners, certificate, mistakes) {
            (
                Some(listen),
                Some(health_address),
                Some(sealing),
                Some(kinds),
                Some(controllers),
                Some(owners),
                Some(certificate),
                mistakes,
            ) if mistakes.is_empty() => Ok(Self {
                entries: conditions::entries(&kinds, file.scope),
                listen,
                health_address,
                sealing: Arc::new(sealing),
                scope: file.scope,
                exempt: file.exempt_namespaces.into_iter().collect(),
                kinds: Arc::new(kinds),
                controllers,
                owners,
                inherit: file.inherit,
                injection: file.injection,
                interactive: file.interactive,
                certificate,
                registration: file.registration,
                limits: file.limits,
            }),
            (.., mistakes) => Err(mistakes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(yaml: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("webhook.yaml");
        std::fs::write(&path, yaml).unwrap();
        match Config::check(process::config::load(&path).unwrap()) {
            Ok(_) => Vec::new(),
            Err(mistakes) => mistakes.iter().map(str::to_owned).collect(),
        }
    }

    /// What docs/configuration.md shows is a configuration, but for files that are not on this machine.
    #[test]
    fn the_documented_example_lacks_nothing_but_its_files() {
        let document = include_str!("../../docs/configuration.md");
        let (_, example) = document.split_once("```yaml webhook\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let found = mistakes(example);
        assert!(matches!(&*found, [one] if one.contains("No such file")), "{found:?}");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let found = mistakes(
            "listen: nowhere\nhealthAddress: \"[::]:9810\"\nseal: {key: /nonexistent}\nexemptNamespaces: [A_B]\n\
             controllers: [{user: x, kinds: [Job.example.com]}]\ninherit: [{namespace: \"*\"}]\n\
             limits: {connections: 0}\n",
        );
        let keys =
            ["listen:", "seal:", "exemptNamespaces:", "controllers:", "inherit:", "limits.connections:"];
        for key in keys {
            assert!(found.iter().any(|mistake| mistake.starts_with(key)), "{key} of {found:?}");
        }
    }

    #[test]
    fn a_kind_of_a_named_controller_is_one_whose_objects_are_read() {
        let configuration = |owners: &str| {
            format!(
                "listen: \"[::]:9444\"\nhealthAddress: \"[::]:9810\"\nseal: {{key: /nonexistent}}\n\
                 workloads: [{{group: example.org, kind: Training, resource: trainings, templates: [spec.template]}}]\n\
                 controllers: [{{user: x, kinds: [Job.batch, TFJob.kubeflow.org, Training.example.org]}}]\n{owners}\n"
            )
        };
        let of_controllers = |owners: &str| {
            let mut found = mistakes(&configuration(owners));
            found.retain(|mistake| !mistake.starts_with("seal:"));
            found
        };
        let unread = "controllers: entry 1: Training.example.org is read by nobody: add it under owners, at the \
                      controller too";
        assert_eq!(of_controllers(""), [unread]);
        let entry = |group: &str| {
            of_controllers(&format!(
                "owners: [{{apiVersion: {group}/v1, kind: Training, resource: trainings}}]"
            ))
        };
        assert_eq!(entry("example.com"), [unread]);
        assert_eq!(entry("example.org"), Vec::<String>::new());
    }
}
