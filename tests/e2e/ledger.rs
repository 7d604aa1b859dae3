//! The ledger in a real API server: what it tells, who may do what with it, and that there is no token without it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bed::{
    Bed,
    harness::Test,
    namenode::{Cluster, TokenAction},
    pod::{Draft, TOKEN_FILE},
    process::until,
    product::NAMESPACE,
};
use identity::{CANCEL_FINALIZER, LEDGER_GROUP};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    rbac::v1::{ClusterRole, RoleBinding},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    GONE_LIMIT,
    objects::{number, objects, of_pod, text, the_one_of},
    tally::Tally,
};

const NAMESPACE_OF_PODS: &str = "default";
const CONTROLLER_ROLE: &str = "hadoop-token-csi-controller-base";
const CONTROLLER_ACCOUNT: &str = "hadoop-token-csi-controller";
const RIGHTS_LIMIT: Duration = Duration::from_secs(20);
const EVENT_LIMIT: Duration = Duration::from_secs(30);
/// kubelet's longest wait between two attempts, and a little.
const START_LIMIT: Duration = Duration::from_secs(180);
/// How long an object may stay of which nobody knows whether it stands for a token.
const UNCLEAR_LIMIT: Duration = Duration::from_secs(180);

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_token_has_an_object_that_tells_of_it_and_holds_no_secret,
        what_the_ledger_says_cannot_be_changed,
        who_may_edit_a_namespace_may_see_and_revoke_and_do_no_more,
        a_token_that_cannot_be_written_down_is_not_asked_for,
        a_token_whose_identifier_cannot_be_written_down_is_cancelled,
    ]
}

async fn a_token_has_an_object_that_tells_of_it_and_holds_no_secret(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let pod = bed.kubernetes().run(&Draft::new("recorded").token_of("etl")).await?;
    let uid = pod.uid().await?;
    let object = the_one_of(bed, &uid).await?;
    let issued = tally.events(TokenAction::Issued)?;
    ensure!(issued.len() == 1 && issued.first().and_then(|event| event.sequence_number).is_some());
    let of_name_node = issued.first().and_then(|event| event.sequence_number).context("no number")?;
    ensure!(u64::from(number(&object)?) == u64::from(of_name_node), "{object:?} is not {issued:?}");
    for (pointer, expected) in [
        ("/spec/pod", "recorded"),
        ("/spec/user", "etl"),
        ("/spec/cluster", Cluster::Main.name()),
        ("/spec/scope", "pod"),
        ("/spec/token/kind", "HDFS_DELEGATION_TOKEN"),
        ("/status/phase", "Active"),
    ] {
        ensure!(text(&object, pointer) == Some(expected), "{pointer} is not {expected}: {object:?}");
    }
    ensure!(object.finalizers() == [CANCEL_FINALIZER], "{:?}", object.finalizers());
    let owners = object.owner_references();
    ensure!(owners.iter().any(|owner| owner.kind == "Pod" && owner.uid == uid), "{owners:?}");

    let shown = bed.kubernetes().kubectl().args(["get", "dt", "--namespace", NAMESPACE_OF_PODS]);
    let shown = shown.succeed().await?;
    for word in ["USER", "CLUSTER", "POD", "NODE", "PHASE", "EXPIRES", "AGE", "recorded", "etl", "Active"] {
        ensure!(shown.contains(word), "kubectl does not show {word}: {shown}");
    }
    let expires = text(&object, "/status/expires").context("no date")?;
    ensure!(shown.contains(expires), "kubectl does not show {expires}: {shown}");

    // The file's text has the password in it; nothing of the file but the identifier is in the object.
    let said = serde_json::to_string(&object)?;
    let identifier = text(&object, "/spec/token/identifier").context("no identifier")?.to_owned();
    for window in secrets(&pod.read(TOKEN_FILE).await?, &identifier)? {
        ensure!(!said.contains(&window), "a part of the token's password is in the object: {said}");
    }
    tally.ends_after(&[pod]).await?;
    until("gone: the object", GONE_LIMIT, async || {
        let left = of_pod(bed, &uid).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

/// The password in a token file, in the forms in which it could stand in an object. Each is long enough to be no chance.
fn secrets(file: &[u8], identifier: &str) -> Result<Vec<String>> {
    use base64::{Engine, engine::general_purpose::STANDARD};

    let identifier = STANDARD.decode(identifier)?;
    let at = file.windows(identifier.len()).position(|window| window == identifier);
    let password = file.get(at.context("the file has another token")? + identifier.len() + 1..);
    let password = password.and_then(|rest| rest.get(..20)).context("the file ends before the password")?;
    let hexadecimal = password.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(vec![STANDARD.encode(password).trim_end_matches('=').to_owned(), hexadecimal])
}

async fn what_the_ledger_says_cannot_be_changed(bed: &Bed) -> Result<()> {
    let pod = bed.kubernetes().run(&Draft::new("unchangeable").token_of("etl")).await?;
    let object = the_one_of(bed, &pod.uid().await?).await?;
    let objects = objects(bed.kubernetes().client(), NAMESPACE_OF_PODS);
    let fields = object.data.pointer("/spec").and_then(Value::as_object).context("no spec")?;
    for (name, value) in fields {
        let other = match value {
            Value::String(text) if name == "scope" && text == "pod" => json!("job"),
            Value::String(text) => json!(format!("{text}x")),
            Value::Number(_) => json!(7_777),
            _ => json!({"identifier": "AAAA"}),
        };
        for other in [other, Value::Null] {
            let patch = Patch::Merge(json!({"spec": {name: other}}));
            match objects.patch(&object.name_any(), &PatchParams::default(), &patch).await {
                Err(kube::Error::Api(status)) if status.code == 422 => {}
                outcome => bail!("{name} was set to {other}: {outcome:?}"),
            }
        }
    }
    ensure!(fields.len() >= 10, "only {fields:?}");
    pod.delete(GONE_LIMIT).await
}

async fn who_may_edit_a_namespace_may_see_and_revoke_and_do_no_more(bed: &Bed) -> Result<()> {
    let bindings: Api<RoleBinding> = Api::namespaced(bed.kubernetes().client(), NAMESPACE_OF_PODS);
    for (role, user) in [("edit", "ledger-editor"), ("view", "ledger-viewer")] {
        let binding = serde_json::from_value(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }))?;
        bindings.create(&PostParams::default(), &binding).await?;
    }
    for (user, verb, expected) in [
        ("ledger-editor", "delete", true),
        ("ledger-editor", "list", true),
        ("ledger-viewer", "watch", true),
        ("ledger-editor", "patch", false),
        ("ledger-editor", "create", false),
        ("ledger-viewer", "delete", false),
    ] {
        may(bed, user, verb, NAMESPACE_OF_PODS, expected).await?;
    }
    for user in ["ledger-editor", "ledger-viewer"] {
        bindings.delete(user, &DeleteParams::default()).await?;
    }
    Ok(())
}

async fn a_token_that_cannot_be_written_down_is_not_asked_for(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let rights = Rights::without(bed, "create").await?;
    let refused = async {
        let pod = bed.kubernetes().create(&Draft::new("unwritten").token_of("etl")).await?;
        pod.until_event("cannot write into the ledger", EVENT_LIMIT).await?;
        anyhow::Ok((pod, tally.events(TokenAction::Issued)?))
    };
    let refused = refused.await;
    rights.restored().await?;
    let (pod, asked) = refused?;
    ensure!(asked.is_empty(), "asked for all the same: {asked:?}");
    pod.until_running(START_LIMIT).await?;
    tally.ends_after(&[pod]).await
}

async fn a_token_whose_identifier_cannot_be_written_down_is_cancelled(bed: &Bed) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let rights = Rights::without(bed, "patch").await?;
    let refused = async {
        let pod = bed.kubernetes().create(&Draft::new("unrecorded").token_of("etl")).await?;
        pod.until_event("cannot write into the ledger", EVENT_LIMIT).await?;
        let issued = tally.events(TokenAction::Issued)?;
        tally.ends().await?;
        anyhow::Ok((pod, issued))
    };
    let refused = refused.await;
    rights.restored().await?;
    let (pod, issued) = refused?;
    let uid = pod.uid().await?;
    ensure!(!issued.is_empty(), "nothing was asked for");
    pod.until_running(START_LIMIT).await?;
    tally.ends_after(&[pod]).await?;
    until("gone: the objects", UNCLEAR_LIMIT, async || {
        let left = of_pod(bed, &uid).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

/// What the controller's role was before a test took something away.
struct Rights<'bed> {
    bed: &'bed Bed,
    before: Value,
    verb: &'static str,
}

impl<'bed> Rights<'bed> {
    /// The controller may not `verb` objects of the ledger any more.
    async fn without(bed: &'bed Bed, verb: &'static str) -> Result<Self> {
        let roles: Api<ClusterRole> = Api::all(bed.kubernetes().client());
        let mut role = roles.get(CONTROLLER_ROLE).await?;
        let before = serde_json::to_value(&role.rules)?;
        let rule = role.rules.iter_mut().flatten();
        let rule =
            rule.into_iter().find(|rule| rule.api_groups.iter().flatten().any(|group| group == LEDGER_GROUP));
        rule.context("no rule for the ledger")?.verbs.retain(|other| other != verb);
        Self::set(bed, &serde_json::to_value(&role.rules)?).await?;
        controller_may(bed, verb, false).await?;
        Ok(Self { bed, before, verb })
    }

    async fn restored(self) -> Result<()> {
        Self::set(self.bed, &self.before).await?;
        controller_may(self.bed, self.verb, true).await
    }

    async fn set(bed: &Bed, rules: &Value) -> Result<()> {
        let roles: Api<ClusterRole> = Api::all(bed.kubernetes().client());
        let patch = Patch::Merge(json!({"rules": rules}));
        roles.patch(CONTROLLER_ROLE, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

async fn controller_may(bed: &Bed, verb: &str, expected: bool) -> Result<()> {
    let account = format!("system:serviceaccount:{NAMESPACE}:{CONTROLLER_ACCOUNT}");
    may(bed, &account, verb, NAMESPACE_OF_PODS, expected).await
}

/// Waits until `user` may, or may not, `verb` objects of the ledger in `namespace`.
async fn may(bed: &Bed, user: &str, verb: &str, namespace: &str, expected: bool) -> Result<()> {
    let reviews: Api<SubjectAccessReview> = Api::all(bed.kubernetes().client());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.to_owned()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(LEDGER_GROUP.to_owned()),
                resource: Some("delegationtokens".to_owned()),
                namespace: Some(namespace.to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    until(&format!("a change of rights: {user}, {verb}, {expected}"), RIGHTS_LIMIT, async || {
        let answer = reviews.create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        ensure!(allowed == expected, "{user} may {verb}: {allowed}");
        Ok(())
    })
    .await
}
