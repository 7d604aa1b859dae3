//! Real handshakes on the loopback interface.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey as Generated, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, generate_simple_self_signed,
};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, pki_types::ServerName};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client, server::TlsStream};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::{
    connections::{Connection, HANDSHAKE_TIMEOUT},
    *,
};

struct Door {
    folder: TempDir,
    tls: Arc<Tls>,
    address: std::net::SocketAddr,
    connections: ReceiverStream<io::Result<TlsStream<Connection>>>,
    stop: CancellationToken,
}

fn write(folder: &TempDir, generated: &Generated<rcgen::KeyPair>) -> Section {
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    fs::write(&certificate, generated.cert.pem()).unwrap();
    fs::write(&key, generated.signing_key.serialize_pem()).unwrap();
    Section { certificate, key, client_authority: None }
}

fn generate() -> Generated<rcgen::KeyPair> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    generate_simple_self_signed(["controller.test".to_owned()]).unwrap()
}

async fn door(generated: &Generated<rcgen::KeyPair>, most: usize) -> Door {
    let folder = TempDir::new().unwrap();
    let files = write(&folder, generated);
    open(folder, files, most).await
}

async fn open(folder: TempDir, files: Section, most: usize) -> Door {
    let tls = Arc::new(Tls::load(files, HTTP_2).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let connections = connections(listener, tls.clone(), most, stop.clone());
    Door { folder, tls, address, connections, stop }
}

async fn call(
    door: &Door,
    trusted: &Generated<rcgen::KeyPair>,
    alpn: &[u8],
) -> io::Result<client::TlsStream<TcpStream>> {
    call_as(door, trusted, alpn, None).await
}

async fn call_as(
    door: &Door,
    trusted: &Generated<rcgen::KeyPair>,
    alpn: &[u8],
    client: Option<&Authority>,
) -> io::Result<client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match client {
        None => config.with_no_client_auth(),
        Some(authority) => {
            let (certificate, key) = authority.client();
            config.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(door.address).await?;
    let name = ServerName::try_from("controller.test").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn speaks_tls_1_3_and_http_2() {
    let generated = generate();
    let mut door = door(&generated, 8).await;
    let client = call(&door, &generated, b"h2").await.unwrap();
    let (_, session) = client.get_ref();
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(session.alpn_protocol(), Some(b"h2".as_slice()));
    assert!(door.connections.next().await.unwrap().is_ok());
    assert!(call(&door, &generated, b"http/1.1").await.is_err(), "another protocol was taken");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let (old, new) = (generate(), generate());
    let door = door(&old, 8).await;
    assert!(call(&door, &old, b"h2").await.is_ok());
    assert!(!door.tls.reload().unwrap(), "nothing has changed");

    write(&door.folder, &new);
    assert!(door.tls.reload().unwrap());
    assert!(call(&door, &new, b"h2").await.is_ok());
    assert!(call(&door, &old, b"h2").await.is_err(), "the old one is still shown");
}

#[tokio::test]
async fn a_half_written_certificate_leaves_the_old_one_in_use() {
    let generated = generate();
    let door = door(&generated, 8).await;
    fs::write(door.folder.path().join("tls.crt"), "-----BEGIN CERT").unwrap();
    assert!(matches!(door.tls.reload(), Err(TlsError::Empty { .. })));
    assert!(call(&door, &generated, b"h2").await.is_ok());
}

#[tokio::test]
async fn a_certificate_of_another_key_is_refused_at_start() {
    let (one, other) = (generate(), generate());
    let folder = TempDir::new().unwrap();
    let files = write(&folder, &one);
    fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
    let error = Tls::load(files, HTTP_2).err().unwrap();
    assert!(matches!(error, TlsError::Certificate { .. }), "{error}");
}

#[tokio::test]
async fn a_caller_that_never_speaks_stops_nobody_and_is_cut_off() {
    let generated = generate();
    let mut door = door(&generated, 8).await;
    let mut silent = TcpStream::connect(door.address).await.unwrap();
    assert!(call(&door, &generated, b"h2").await.is_ok());
    assert!(door.connections.next().await.unwrap().is_ok());
    let cut_off = timeout(HANDSHAKE_TIMEOUT * 2, silent.read(&mut [0])).await;
    assert_eq!(cut_off.expect("still open").unwrap_or(0), 0);
}

#[tokio::test]
async fn further_callers_wait_until_a_connection_ends() {
    let generated = generate();
    let mut door = door(&generated, 1).await;
    let _client = call(&door, &generated, b"h2").await.unwrap();
    let first = door.connections.next().await.unwrap().unwrap();
    let waiting = call(&door, &generated, b"h2");
    tokio::pin!(waiting);
    assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err(), "a second one was let in");
    drop(first);
    assert!(waiting.await.is_ok());
}

#[tokio::test]
async fn takes_nobody_in_after_stop() {
    let generated = generate();
    let mut door = door(&generated, 8).await;
    door.stop.cancel();
    assert!(door.connections.next().await.is_none());
    assert!(call(&door, &generated, b"h2").await.is_err());
}

#[tokio::test]
async fn passes_bytes_on() {
    let generated = generate();
    let mut door = door(&generated, 8).await;
    let mut client = call(&door, &generated, b"h2").await.unwrap();
    let mut server = door.connections.next().await.unwrap().unwrap();
    client.write_all(b"over").await.unwrap();
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"over");
}

/// Signs the certificates of callers.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn client(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

/// Whether a caller who shows a certificate of `client`'s gets in. A client of TLS 1.3 believes to be in before it is.
async fn gets_in(door: &mut Door, trusted: &Generated<rcgen::KeyPair>, client: Option<&Authority>) -> bool {
    let Ok(mut stream) = call_as(door, trusted, b"h2", client).await else { return false };
    let mut byte = [0];
    tokio::select! {
        connection = door.connections.next() => connection.unwrap().is_ok(),
        closed = stream.read(&mut byte) => { assert_eq!(closed.unwrap_or(0), 0); false }
    }
}

#[tokio::test]
async fn where_client_certificates_are_asked_for_nobody_gets_in_without_a_right_one() {
    let (generated, clients, others) = (generate(), Authority::new(), Authority::new());
    let folder = TempDir::new().unwrap();
    let authority = folder.path().join("client-ca.crt");
    fs::write(&authority, clients.0.pem()).unwrap();
    let files = Section { client_authority: Some(authority), ..write(&folder, &generated) };
    let mut door = open(folder, files, 8).await;
    assert!(gets_in(&mut door, &generated, Some(&clients)).await);
    assert!(!gets_in(&mut door, &generated, Some(&others)).await, "another authority's got in");
    assert!(!gets_in(&mut door, &generated, None).await, "got in without");
}

#[tokio::test]
async fn a_new_client_authority_is_taken_up_without_a_restart() {
    let (generated, old, new) = (generate(), Authority::new(), Authority::new());
    let folder = TempDir::new().unwrap();
    let authority = folder.path().join("client-ca.crt");
    fs::write(&authority, old.0.pem()).unwrap();
    let files = Section { client_authority: Some(authority.clone()), ..write(&folder, &generated) };
    let mut door = open(folder, files, 8).await;
    assert!(gets_in(&mut door, &generated, Some(&old)).await);

    fs::write(&authority, old.0.pem() + &new.0.pem()).unwrap();
    assert!(door.tls.reload().unwrap());
    assert!(
        gets_in(&mut door, &generated, Some(&old)).await && gets_in(&mut door, &generated, Some(&new)).await
    );

    fs::write(&authority, new.0.pem()).unwrap();
    assert!(door.tls.reload().unwrap());
    assert!(!gets_in(&mut door, &generated, Some(&old)).await, "the old authority is still believed");
    assert!(gets_in(&mut door, &generated, Some(&new)).await);

    fs::write(&authority, "").unwrap();
    assert!(door.tls.reload().is_err());
    assert!(!gets_in(&mut door, &generated, None).await, "an empty file opened the door");
    assert!(gets_in(&mut door, &generated, Some(&new)).await);
}

#[tokio::test]
async fn a_renewed_key_and_certificate_go_together() {
    let (old, new) = (generate(), generate());
    let door = door(&old, 8).await;
    fs::write(door.folder.path().join("tls.crt"), new.cert.pem()).unwrap();
    assert!(matches!(door.tls.reload(), Err(TlsError::Certificate { .. })), "the key is the old one's");
    assert!(call(&door, &old, b"h2").await.is_ok());
    fs::write(door.folder.path().join("tls.key"), new.signing_key.serialize_pem()).unwrap();
    assert!(door.tls.reload().unwrap());
    assert!(call(&door, &new, b"h2").await.is_ok());
}
