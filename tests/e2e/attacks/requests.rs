//! Attackers who hold a node plugin's token and say to the token service what no node plugin says.

use anyhow::{Context, Result, bail, ensure};
use bed::{Bed, pod::Draft};
use proto::{
    VolumeId,
    token::v1::{
        CheckRequest, IssueRequest, Pod, RenewRequest, Renewal, Token, Volume, check_response::Outcome,
        renewal_outcome::Outcome as RenewalResult,
    },
};
use serde_json::json;

use super::stage::{Lair, Prey, Stage, draft, identifier, refusal, refused, sealed};

/// A pod of `etl` with volumes of all kinds.
fn motley(name: &str) -> Draft {
    let volume = |name: &str, csi| json!({"name": name, "csi": csi});
    let ours =
        |attributes| json!({"driver": "hadoop-token.csi", "readOnly": true, "volumeAttributes": attributes});
    [
        volume("another", ours(json!({}))),
        volume("nowhere", ours(json!({"cluster": "nowhere"}))),
        volume("misspelt", ours(json!({"Cluster": "main"}))),
        volume("smuggled", ours(json!({"csi.storage.k8s.io/pod.name": "victim", "user": "ads"}))),
        volume("writable", json!({"driver": "hadoop-token.csi"})),
        volume("foreign", json!({"driver": "other.csi", "readOnly": true})),
        json!({"name": "scratch", "emptyDir": {}}),
    ]
    .into_iter()
    .fold(draft(name), |draft, volume| draft.push("/spec/volumes", volume))
}

pub(super) async fn requests_that_no_node_plugin_makes_are_refused(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let prey = lair.create(&sealed(bed.kubernetes().sealing_key(), motley("motley"), "etl")?).await?;
    let before = stage.issued()?;
    let request = |change: &dyn Fn(&mut Volume)| {
        let mut volume = prey.volume();
        change(&mut volume);
        IssueRequest { volume: Some(volume), ..prey.issue() }
    };

    // Names that would lead elsewhere in a path, a log line or an audit record.
    let long = "a".repeat(70_000);
    for name in [
        "",
        "motley\n",
        "motley\n{\"decision\":\"granted\"}",
        "motley\u{0}",
        "../../secrets/x",
        "a/b",
        "a?b=c",
        "%2e%2e",
        "..",
        "Motley",
        "motley.",
        "-motley",
        "m\u{f6}tley",
        "\u{202e}yeltom",
        &long,
    ] {
        let pod = |change: &dyn Fn(&mut Pod)| request(&|volume| change(volume.pod.get_or_insert_default()));
        for (field, request) in [
            ("namespace", pod(&|pod| pod.namespace = name.to_owned())),
            ("pod", pod(&|pod| pod.name = name.to_owned())),
            ("UID", pod(&|pod| pod.uid = name.to_owned())),
            ("volume", request(&|volume| volume.name = name.to_owned())),
            ("volume id", request(&|volume| volume.id = name.to_owned())),
        ] {
            let shown: String = name.chars().take(40).collect();
            refused(lair.caller(), request, &format!("{field} {shown:?}"), "INVALID_REQUEST").await?;
        }
    }
    let headless = request(&|volume| volume.pod = None);
    refused(lair.caller(), headless, "no pod", "INVALID_REQUEST").await?;
    let empty = IssueRequest { volume: None, ..prey.issue() };
    refused(lair.caller(), empty, "no volume", "INVALID_REQUEST").await?;

    // Volumes that are not his, or not ours.
    let id = |name: &str| VolumeId::of(&prey.uid, name).to_string();
    let swapped = request(&|volume| volume.id = id("another"));
    refused(lair.caller(), swapped, "the id of another volume", "VOLUME_ID_MISMATCH").await?;
    for (name, reason) in [
        ("absent", "VOLUME_NOT_IN_POD"),
        ("scratch", "VOLUME_NOT_IN_POD"),
        ("foreign", "VOLUME_OF_ANOTHER_DRIVER"),
        ("writable", "VOLUME_NOT_READ_ONLY"),
        ("misspelt", "UNKNOWN_ATTRIBUTE"),
        ("smuggled", "UNKNOWN_ATTRIBUTE"),
        ("nowhere", "CLUSTER_UNKNOWN"),
    ] {
        let named = request(&|volume| (volume.name, volume.id) = (name.to_owned(), id(name)));
        refused(lair.caller(), named, name, reason).await?;
    }
    ensure!(stage.issued()? == before, "a token was issued all the same");
    // What was asked for is wrong, not who asked.
    let answer = lair.caller().clone().issue(prey.issue()).await?.into_inner();
    ensure!(answer.user == "etl" && answer.tokens.len() == 1, "a token of {}", answer.user);
    lair.caller().clone().release(prey.release(answer)).await?;
    lair.forget(&prey).await?;
    lair.leave().await
}

pub(super) async fn tokens_of_others_can_be_neither_renewed_nor_taken_away(bed: &Bed) -> Result<()> {
    let stage = Stage::set(bed).await?;
    let lair = Lair::of(&stage).await?;
    let key = bed.kubernetes().sealing_key();
    let victim = lair.create(&sealed(key, draft("victim"), "ads")?).await?;
    let prey = lair.create(&sealed(key, draft("thief"), "etl")?).await?;
    let answer = lair.caller().clone().issue(victim.issue()).await?.into_inner();
    let issued = answer.tokens.first().context("no token")?;
    let (number, token) = (issued.sequence_number, issued.token.clone().context("no token")?);
    ensure!(answer.user == "ads", "a token of {}", answer.user);

    let renewal = |tokens: Vec<Token>| Renewal {
        volume: Some(prey.volume()),
        pod_token: prey.jwt.clone(),
        cluster: answer.cluster.clone(),
        tokens,
    };
    let renew = async |what: &str, tokens: Vec<Token>, reason: &str| {
        let answer = lair.caller().clone().renew(RenewRequest { renewals: vec![renewal(tokens)] }).await?;
        match answer.into_inner().outcomes.pop().and_then(|outcome| outcome.outcome) {
            Some(RenewalResult::NotRenewed(not)) if not.reason == reason => Ok(()),
            outcome => bail!("{what}: {outcome:?}, not {reason}"),
        }
    };
    renew("another's token", vec![token.clone()], "TOKEN_OF_ANOTHER_USER").await?;
    let many = RenewRequest { renewals: vec![renewal(vec![token.clone(); 65])] };
    refusal(lair.caller().clone().renew(many).await, "too many", "INVALID_REQUEST")?;
    let garbage = Token { identifier: vec![0xff; 64], ..token.clone() };
    renew("no token", vec![garbage], "TOKEN_UNREADABLE").await?;

    let check = |prey: &Prey| CheckRequest {
        volume: Some(prey.volume()),
        pod_token: prey.jwt.clone(),
        cluster: answer.cluster.clone(),
        tokens: vec![identifier(token.clone())],
        addresses: None,
    };
    // The node plugin is told to wipe it, and to give back what it has; nobody cancels it on its word.
    let checked = lair.caller().clone().check(check(&prey)).await?.into_inner();
    match checked.outcome.context("no outcome")? {
        Outcome::Revoked(revoked) => ensure!(revoked.reason == "TOKEN_OF_ANOTHER_USER", "{revoked:?}"),
        Outcome::Kept(kept) => bail!("another's token is kept: {kept:?}"),
    }
    stage.still_live(number)?;
    // A pod that is to lose its tokens cannot take others' with it.
    let outcast = lair.create(&sealed(key, draft("outcast"), "hdfs")?).await?;
    match lair.caller().clone().check(check(&outcast)).await {
        Err(_) => {}
        Ok(kept) => {
            let outcome = kept.into_inner().outcome.context("no outcome")?;
            ensure!(matches!(outcome, Outcome::Revoked(_)), "{outcome:?}");
        }
    }
    stage.still_live(number)?;
    let theft = lair.caller().clone().release(prey.release(answer.clone())).await;
    refusal(theft, "another's token given back", "TOKENS_NOT_CANCELLED")?;
    stage.still_live(number)?;
    lair.caller().clone().release(victim.release(answer)).await?;
    for pod in [&victim, &prey, &outcast] {
        lair.forget(pod).await?;
    }
    lair.leave().await
}
