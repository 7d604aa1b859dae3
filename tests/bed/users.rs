//! People and programs who use the bed's Kubernetes with no more rights than a team has: three users with client
//! certificates who share two namespaces, and in each a service account that may create pods and that all three may
//! use. Attacks are made as one of them, so that nothing is shown that only an administrator could do.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::{kubernetes::Kubernetes, process::until};

/// A namespace that all three share.
pub const JOBS: &str = "jobs";
/// Another one.
pub const OTHER: &str = "other";
/// One that they share too, and that the controller serves nobody in; see `namespaces.exempt` of its configuration.
pub const EXEMPT: &str = "exempt";
/// A service account in each of them that may create pods.
pub const ROBOT: &str = "robot";
/// The group that all three are in.
pub const TEAM: &str = "team";

const NAMESPACES: [&str; 3] = [JOBS, OTHER, EXEMPT];
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Longer than any test.
const TOKEN_SECONDS: i64 = 3600;

/// The three, as clients of the API server. Their namespaces and rights exist.
#[derive(Clone)]
pub struct Users {
    /// Has data in HDFS, and jobs.
    pub etl: Client,
    /// Has data in HDFS too.
    pub ads: Client,
    /// Wants both.
    pub intruder: Client,
}

impl Users {
    /// Gives them their namespaces and rights, if they have not got them yet.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn of(kubernetes: &Kubernetes) -> Result<Self> {
        let documents: Vec<Value> = NAMESPACES.into_iter().flat_map(namespace).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": documents});
        kubernetes.apply(&list.to_string()).await?;
        for namespace in NAMESPACES {
            let accounts: Api<ServiceAccount> = Api::namespaced(kubernetes.client(), namespace);
            until("there: service account default", READY_LIMIT, async || {
                accounts.get("default").await.map_err(Into::into)
            })
            .await?;
        }
        Ok(Self {
            etl: kubernetes.client_as("etl", Some(TEAM)).await?,
            ads: kubernetes.client_as("ads", Some(TEAM)).await?,
            intruder: kubernetes.client_as("intruder", Some(TEAM)).await?,
        })
    }
}

/// A shared namespace: whoever is in the team may do in it what teams do, and use its robot.
fn namespace(name: &str) -> Vec<Value> {
    let everything = json!(["create", "get", "list", "watch", "patch", "update", "delete"]);
    let workloads = ["deployments", "replicasets", "statefulsets", "daemonsets", "deployments/scale"];
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": everything},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods/exec", "pods/ephemeralcontainers"], "verbs": ["create", "get", "patch"]},
        {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["get", "list"]},
        {"apiGroups": ["apps"], "resources": workloads, "verbs": everything},
        {"apiGroups": ["batch"], "resources": ["jobs", "cronjobs"], "verbs": everything},
    ]);
    let robots = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": everything}]);
    let metadata = |object: &str| json!({"name": object, "namespace": name});
    let binding = |role: &str, subject: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata(role),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [subject],
        })
    };
    let role = |role: &str, rules: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata(role),
            "rules": rules,
        })
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(ROBOT)}),
        role(TEAM, rules),
        binding(TEAM, json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": TEAM})),
        role(ROBOT, robots),
        binding(ROBOT, json!({"kind": "ServiceAccount", "name": ROBOT, "namespace": name})),
    ]
}

/// What a service-account token is bound to.
#[derive(Debug, Clone, Copy)]
pub enum Bound<'a> {
    /// To nothing.
    Nothing,
    /// To a pod.
    Pod {
        /// Name of the pod.
        name: &'a str,
        /// UID of the pod.
        uid: &'a str,
    },
}

/// Has the API server make a service-account token, with the rights of `client`.
///
/// # Errors
/// When the API server refuses.
pub async fn service_account_token(
    client: &Client,
    namespace: &str,
    account: &str,
    audience: &str,
    bound: Bound<'_>,
) -> Result<String> {
    let bound_object_ref = match bound {
        Bound::Nothing => None,
        Bound::Pod { name, uid } => Some(BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
        }),
    };
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            bound_object_ref,
            expiration_seconds: Some(TOKEN_SECONDS),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| format!("failed to get a token of service account {namespace}/{account}"))?;
    Ok(answer.status.context("a token request without a status")?.token)
}

impl Kubernetes {
    /// A client who shows a service-account token.
    ///
    /// # Errors
    /// When no client can be made of it.
    pub async fn client_with_token(&self, token: &str) -> Result<Client> {
        let mut kubeconfig = serde_json::to_value(Kubeconfig::read_from(self.kubeconfig())?)?;
        let users = kubeconfig.pointer_mut("/users/0/user").context("a kubeconfig without a user")?;
        *users = json!({"token": token});
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }
}
