//! Who administrates the cluster, and has no keytab. What he cannot do, and honestly what he can: as Kubernetes lets him
//! be everybody, he is everybody to us, but for those whom nobody may be.

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bed::{
    Bed,
    outside::{Outside, ready},
    process::{Daemon, Program, until},
    product::NAMESPACE,
    users::TEAM,
};
use identity::{SUBMITTER_ANNOTATION, seal::SealingKey};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::scene::{LIMIT, Scene, at, is_of, plain, put_at};
use crate::{
    GONE_LIMIT,
    attacks::stage::{acting, draft, sealed},
};

/// Whom nobody becomes, by every name that Hadoop would take for him.
const SUPERUSERS: [&str; 4] = ["hdfs", "yarn", "hdfs/nn1.bed.test@BED.TEST", "mapred"];
/// What every keytab begins with; the length of its first entry, which is far less than 64 KiB, follows.
const KEYTAB: &[u8] = &[5, 2, 0, 0];
const OUTSIDE: &str = "outside-of-the-cluster";
const HEALTH: &str = "127.0.0.1:9829";

pub(super) async fn threat_model_3_what_an_administrator_writes_past_the_webhook_gets_nothing(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let kubernetes = bed.kubernetes();
    let forger = SealingKey::generate();
    let past = async || {
        let named = draft("named").annotation(SUBMITTER_ANNOTATION, "etl");
        let forged = sealed(&forger, draft("forged"), "etl")?;
        for (draft, reason) in [(named, "SEAL_MISSING"), (forged, "SEAL_INVALID")] {
            let pod = kubernetes.create(&draft).await?;
            scene.stage.pod_refused(&pod, reason, 0).await?;
            pod.delete(GONE_LIMIT).await?;
        }
        // A workload with a name that nobody sealed, for later.
        let mut named = plain("Deployment", "written-past");
        put_at(&mut named, "/spec/template/metadata/annotations", json!({SUBMITTER_ANNOTATION: "etl"}))?;
        put_at(&mut named, "/spec/replicas", json!(0))?;
        scene.submit("admin", &named).await?;
        // Its controller makes a ReplicaSet of it as it is, which is asked about when the webhook is back.
        until("there: the ReplicaSet of what was written past", LIMIT, async || set_of(&scene).await).await
    };
    let set = scene.past_the_webhook(past).await?;
    // When the webhook is back, it makes no pods, and is of whoever touches it.
    let scale = ["scale", "deployment/written-past", "--replicas=1"];
    scene.kubectl("admin")?.args(scale).succeed().await?;
    scene.event("ReplicaSet", &set, &["FailedCreate", "carries no seal"]).await?;
    scene.issued_to(&[])?;
    let touched = json!({"spec": {"template": {"metadata": {"labels": {"by": "admin"}}}}});
    is_of(&scene.merge("admin", "Deployment", "written-past", touched).await?, "admin")?;
    scene.remove("Deployment", "written-past").await?;
    scene.ends(&[]).await
}

/// The name of the ReplicaSet of the Deployment that was written past the webhook.
async fn set_of(scene: &Scene<'_>) -> Result<String> {
    let its = ListParams::default().labels("app=written-past");
    let set = scene.objects("admin", "ReplicaSet").list(&its).await?.items.pop().context("no ReplicaSet")?;
    set.metadata.name.context("no name")
}

pub(super) async fn threat_model_3_an_administrator_is_whom_he_says_he_is_and_never_a_superuser(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let kubernetes = bed.kubernetes();
    // Kubernetes lets him be etl, whose password he could change as well.
    let pod = kubernetes.create_as(scene.acting_as("etl").await?, &draft("acted")).await?;
    scene.runs_as(&pod, "etl").await?;
    pod.delete(GONE_LIMIT).await?;
    // And he can read the key that seals, and so seal by himself what he writes past the webhook.
    let secrets: Api<Secret> = Api::namespaced(kubernetes.client(), NAMESPACE);
    let secret = secrets.get("hadoop-token-csi-sealing-key").await?.data.unwrap_or_default();
    let ByteString(pem) = secret.get("seal.pem").context("no sealing key")?;
    let key = SealingKey::from_pem(std::str::from_utf8(pem)?)?;
    let past = async || {
        let pod = kubernetes.create(&sealed(&key, draft("sealed-by-hand"), "etl")?).await?;
        scene.runs_as(&pod, "etl").await?;
        pod.delete(GONE_LIMIT).await?;
        for (number, name) in SUPERUSERS.into_iter().enumerate() {
            let pod = sealed(&key, draft(&format!("super-by-hand-{number}")), name)?;
            let pod = kubernetes.create(&pod).await?;
            scene.stage.pod_refused(&pod, "USER_DENIED", 2).await.context(name)?;
            pod.delete(GONE_LIMIT).await?;
        }
        Ok(())
    };
    scene.past_the_webhook(past).await?;
    // Whatever he says he is, and whatever the webhook seals then, a superuser he is not.
    for (number, name) in SUPERUSERS.into_iter().enumerate() {
        let pod = draft(&format!("super-{number}"));
        let pod = kubernetes.create_as(scene.acting_as(name).await?, &pod).await?;
        ensure!(scene.seal(&pod).await?.submitter == name, "it is another's");
        scene.stage.pod_refused(&pod, "USER_DENIED", 2).await.context(name)?;
        pod.delete(GONE_LIMIT).await?;
    }
    // Nor by way of somebody who is none.
    let pod = acting(draft("super-by-etl"), "hdfs");
    let pod = kubernetes.create_as(scene.acting_as("etl").await?, &pod).await?;
    scene.stage.pod_refused(&pod, "USER_DENIED", 2).await?;
    pod.delete(GONE_LIMIT).await?;
    scene.ends(&["etl", "etl"]).await
}

pub(super) async fn threat_model_3_with_the_controller_outside_there_is_no_keytab_in_the_cluster(
    bed: &Bed,
) -> Result<()> {
    let scene = Scene::set(bed).await?;
    let (kubernetes, product) = (bed.kubernetes(), bed.product().await?);
    let Outside { program, configuration, kubeconfig } = Outside::of(bed, OUTSIDE, HEALTH).await?;
    let program = Program::new(program).arg("--config").arg(configuration).env("KUBECONFIG", kubeconfig);
    let program = program.env("KRB5_CONFIG", bed.kdc().client_configuration());
    let controller = Daemon::new(OUTSIDE, program, &bed.state().join("logs"));
    let outcome = async {
        product.stop_controller().await?;
        controller.start().await?;
        controller.until("ready", LIMIT, async || ready(HEALTH).await).await?;
        // So that the search is known to find one.
        let found = keytabs(bed).await?;
        let [found] = found.as_slice() else { anyhow::bail!("keytabs in {found:?}") };
        let name = found.strip_prefix(&format!("Secret {NAMESPACE}/")).context("it is in no Secret")?;
        let delete = ["--namespace", NAMESPACE, "delete", "secret", name];
        kubernetes.kubectl().args(delete).succeed().await?;
        let left = keytabs(bed).await?;
        ensure!(left.is_empty(), "keytabs in {left:?}");
        let pod = kubernetes.create_as(scene.client("etl"), &draft("served-from-outside")).await?;
        scene.runs_as(&pod, "etl").await?;
        pod.delete(GONE_LIMIT).await?;
        scene.ends(&["etl"]).await
    };
    let outcome: Result<()> = outcome.await;
    let stopped = controller.stop().await;
    let back = async {
        product.apply().await?;
        product.start_controller().await
    };
    let back: Result<()> = back.await;
    outcome.and(stopped).and(back)
}

impl Scene<'_> {
    /// The administrator, who says that he is somebody of the team.
    async fn acting_as(&self, user: &str) -> Result<Client> {
        let mut kubeconfig =
            serde_json::to_value(Kubeconfig::read_from(self.bed.kubernetes().kubeconfig())?)?;
        let section = kubeconfig.pointer_mut("/users/0/user").and_then(Value::as_object_mut);
        let section = section.context("a kubeconfig without a user")?;
        section.insert("as".to_owned(), json!(user));
        section.insert("as-groups".to_owned(), json!([TEAM]));
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }
}

/// Every object of the API server's that holds a keytab.
async fn keytabs(bed: &Bed) -> Result<Vec<String>> {
    let kubectl = || bed.kubernetes().kubectl();
    let kinds = kubectl().args(["api-resources", "--verbs=list", "-o", "name"]).succeed().await?;
    let kinds: Vec<&str> = kinds.lines().collect();
    ensure!(kinds.contains(&"secrets") && kinds.contains(&"configmaps"), "only {kinds:?} are searched");
    let all = ["get", &kinds.join(","), "--all-namespaces", "-o", "json"].map(str::to_owned);
    let all: Value = serde_json::from_str(&kubectl().args(all).succeed().await?)?;
    let objects = at(&all, "/items")?.as_array().context("no objects")?;
    let place = |object: &Value| {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        format!("{} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
    };
    Ok(objects.iter().filter(|object| holds_keytab(object)).map(place).collect())
}

fn holds_keytab(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.values().any(holds_keytab),
        Value::Array(list) => list.iter().any(holds_keytab),
        Value::String(text) => BASE64_STANDARD.decode(text).is_ok_and(|bytes| bytes.starts_with(KEYTAB)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
