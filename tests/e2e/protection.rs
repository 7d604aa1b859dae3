//! How the controller speaks to NameNodes: under whatever protection they ask for, and to none but the one that is
//! configured. What goes over the wire is recorded between the two.

use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bed::{
    Bed,
    harness::Test,
    host::NODE_IP,
    namenode::{Cluster, NameNode, TokenAction, private_content},
    pod::Draft,
    reckoning::node_settles,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{GONE_LIMIT, tally::Tally};

const EVENT_LIMIT: Duration = Duration::from_secs(60);
const RELEASE_LIMIT: Duration = Duration::from_secs(60);

/// What a client says before it has seen who the server is: preamble, then the request for a handshake.
const PREAMBLE: [u8; 7] = *b"hrpc\x09\x00\xdf";
/// `RpcSaslProto.state` of what carries a ticket is INITIATE; the first message's is NEGOTIATE.
const NEGOTIATE: [u8; 2] = [0x10, 1];

/// The principal that the controller expects of NameNodes on the bed.
const ANY_NAMENODE: &str = "nn/_HOST@BED.TEST";

pub(crate) fn tests() -> Vec<Test> {
    bed::tests![
        a_namenode_with_plain_authentication_works,
        a_namenode_with_privacy_works_for_controller_java_and_hdfs_native,
        under_privacy_nothing_can_be_read_on_the_wire,
        a_namenode_with_another_principal_is_refused_before_any_ticket_is_sent_to_it,
    ]
}

async fn a_namenode_with_plain_authentication_works(bed: &Bed) -> Result<()> {
    reads(bed, bed.main(), "plain").await
}

async fn a_namenode_with_privacy_works_for_controller_java_and_hdfs_native(bed: &Bed) -> Result<()> {
    reads(bed, bed.private().await?, "private").await
}

/// Both clients read their user's file with nothing but the token.
async fn reads(bed: &Bed, name_node: &NameNode, name: &str) -> Result<()> {
    let (tally, cluster) = (Tally::begin(name_node).await?, name_node.cluster());
    let (path, expected) = ("/user/ads/private.txt", private_content(cluster, "ads"));
    let draft = |client: &str| Draft::new(&format!("{name}-{client}")).token_of_at("ads", cluster);
    let java = bed.kubernetes().run(&draft("java").java(bed)).await?;
    let read = java.hadoop(bed.tools(), cluster, &["-cat", path]).await?.success()?;
    ensure!(read == expected, "Java read {read:?}");
    let native = bed.kubernetes().run(&draft("native")).await?;
    let read = native.hdfs_native(cluster, &["cat", path]).await?.success()?;
    ensure!(read == expected, "hdfs-native read {read:?}");
    tally.ends_after(&[java, native]).await
}

async fn under_privacy_nothing_can_be_read_on_the_wire(bed: &Bed) -> Result<()> {
    let says = |wire: &Wire| wire.count(b"getDelegationToken") > 0 && wire.count(b"token-seeker") > 0;
    let plain = recorded(bed, Cluster::Main).await?;
    ensure!(says(&plain), "the recorder is deaf: {} bytes", plain.sent().len());
    let private = recorded(bed, Cluster::Private).await?;
    ensure!(private.sent().len() > 500, "only {} bytes were sent", private.sent().len());
    for word in ["getDelegationToken", "token-seeker", "ads", "cancelDelegationToken"] {
        ensure!(private.count(word.as_bytes()) == 0, "{word} is readable");
    }
    Ok(())
}

/// The wire between controller and NameNode while a pod lives and dies.
async fn recorded(bed: &Bed, cluster: Cluster) -> Result<Wire> {
    let name_node = match cluster {
        Cluster::Main => bed.main(),
        Cluster::Private => bed.private().await?,
    };
    let tally = Tally::begin(name_node).await?;
    let wire = Wire::to(cluster).await?;
    let principal = format!("nn/{}@{}", cluster.host(), bed::kdc::REALM);
    with_impostor(bed, &wire, cluster, &principal, async || {
        let pod = bed.kubernetes().run(&seeker("ads")).await?;
        tally.ends_after(&[pod]).await
    })
    .await?;
    Ok(wire)
}

async fn a_namenode_with_another_principal_is_refused_before_any_ticket_is_sent_to_it(
    bed: &Bed,
) -> Result<()> {
    let tally = Tally::begin(bed.main()).await?;
    let wire = Wire::to(Cluster::Main).await?;
    // As of the NameNode next door, whose host any member of the realm could own.
    let principal = format!("nn/{}@{}", Cluster::Private.host(), bed::kdc::REALM);
    with_impostor(bed, &wire, Cluster::Main, &principal, async || {
        let pod = bed.kubernetes().create(&seeker("etl")).await?;
        let event = pod
            .until_event("nn/nn1.bed.test@BED.TEST, expected nn/nn2.bed.test@BED.TEST", EVENT_LIMIT)
            .await?;
        ensure!(event.contains("code = FailedPrecondition"), "{event}");
        pod.delete(GONE_LIMIT).await
    })
    .await?;
    let sent = wire.connections();
    ensure!(!sent.is_empty(), "the controller never came by");
    for bytes in sent {
        let rest = bytes.strip_prefix(&PREAMBLE).context("no Hadoop client")?;
        let length: [u8; 4] = rest.get(..4).context("no message")?.try_into()?;
        let message = rest.get(4..).unwrap_or_default();
        ensure!(
            message.len() == usize::try_from(u32::from_be_bytes(length))?,
            "more than one message: {bytes:x?}"
        );
        ensure!(message.ends_with(&NEGOTIATE), "not the request for a handshake: {bytes:x?}");
    }
    ensure!(tally.events(TokenAction::Issued)?.is_empty(), "a token was issued all the same");
    tally.ends().await
}

/// A pod with a token from the cluster that the tests here redirect.
fn seeker(user: &str) -> Draft {
    let attributes = json!({"cluster": "impostor"});
    let csi = json!({"driver": "hadoop-token.csi", "readOnly": true, "volumeAttributes": attributes});
    Draft::new("token-seeker").submitter(user, &[]).token_volume(&csi)
}

/// Leads the controller's cluster `impostor` over the wire, expecting `principal` at its end, while `test` runs.
async fn with_impostor<F>(
    bed: &Bed,
    wire: &Wire,
    cluster: Cluster,
    principal: &str,
    test: impl FnOnce() -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let product = bed.product().await?;
    let folder = product.overlay().join("impostor");
    let saved = Saved::of(&folder)?;
    let redirected = format!("controller.bed.test:{}", wire.address.port());
    for file in Saved::FILES {
        let text = fs::read_to_string(product.overlay().join(cluster.name()).join(file))?;
        let text = text.replace(&cluster.address(), &redirected).replace(ANY_NAMENODE, principal);
        ensure!(!text.contains("_HOST"), "{file} still names a principal of its own: {text}");
        fs::write(folder.join(file), text)?;
    }
    let outcome = async {
        product.apply().await?;
        product.until_ready().await?;
        test().await?;
        // The node plugin is late, and afterwards the controller can cancel nothing there.
        node_settles(bed, RELEASE_LIMIT).await
    };
    let outcome = outcome.await;
    let restored = async {
        saved.restore(&folder)?;
        product.apply().await?;
        product.until_ready().await
    };
    outcome.and(restored.await)
}

/// A cluster's configuration as it was.
struct Saved(Vec<(PathBuf, Vec<u8>)>);

impl Saved {
    const FILES: [&str; 2] = ["core-site.xml", "hdfs-site.xml"];

    fn of(folder: &std::path::Path) -> Result<Self> {
        let read = |file| Ok((PathBuf::from(file), fs::read(folder.join(file))?));
        Ok(Self(Self::FILES.into_iter().map(read).collect::<Result<_>>()?))
    }

    fn restore(&self, folder: &std::path::Path) -> Result<()> {
        for (file, content) in &self.0 {
            fs::write(folder.join(file), content)?;
        }
        Ok(())
    }
}

/// A way to a NameNode on which everything that clients send is recorded, each connection for itself.
struct Wire {
    address: SocketAddr,
    record: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Wire {
    async fn to(cluster: Cluster) -> Result<Self> {
        let listener = TcpListener::bind((NODE_IP, 0)).await?;
        let (address, record) = (listener.local_addr()?, Arc::new(Mutex::new(Vec::new())));
        let recording = record.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, cluster.address(), recording.clone()));
            }
        });
        Ok(Self { address, record, task })
    }

    fn connections(&self) -> Vec<Vec<u8>> {
        lock(&self.record).clone()
    }

    fn sent(&self) -> Vec<u8> {
        self.connections().concat()
    }

    fn count(&self, word: &[u8]) -> usize {
        self.sent().windows(word.len()).filter(|bytes| *bytes == word).count()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(record: &Mutex<Vec<Vec<u8>>>) -> MutexGuard<'_, Vec<Vec<u8>>> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends with either side; what was sent until then is recorded.
async fn pass(client: TcpStream, server: String, record: Arc<Mutex<Vec<Vec<u8>>>>) -> std::io::Result<()> {
    let number = {
        let mut record = lock(&record);
        record.push(Vec::new());
        record.len() - 1
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(server).await?.into_split();
    let there = async {
        let mut buffer = [0; 4096];
        loop {
            let count = from_client.read(&mut buffer).await?;
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return to_server.shutdown().await;
            }
            if let Some(connection) = lock(&record).get_mut(number) {
                connection.extend_from_slice(bytes);
            }
            to_server.write_all(bytes).await?;
        }
    };
    let back = async {
        copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(there, back).map(drop)
}
