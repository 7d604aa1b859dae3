//! Real handshakes on the loopback interface.

use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, pki_types::ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client};
use tokio_stream::StreamExt;

use super::*;

struct Door {
    folder: TempDir,
    certificate: Arc<Certificate>,
    address: std::net::SocketAddr,
    connections: ReceiverStream<io::Result<TlsStream<Connection>>>,
    stop: CancellationToken,
}

fn write(folder: &TempDir, generated: &Generated<rcgen::KeyPair>) -> (PathBuf, PathBuf) {
    let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    fs::write(&chain, generated.cert.pem()).unwrap();
    fs::write(&key, generated.signing_key.serialize_pem()).unwrap();
    (chain, key)
}

fn generate() -> Generated<rcgen::KeyPair> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    generate_simple_self_signed(["controller.test".to_owned()]).unwrap()
}

async fn door(generated: &Generated<rcgen::KeyPair>, most: usize) -> Door {
    let folder = TempDir::new().unwrap();
    let (chain, key) = write(&folder, generated);
    let certificate = Arc::new(Certificate::load(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let connections = connections(listener, certificate.server_config(), most, stop.clone());
    Door { folder, certificate, address, connections, stop }
}

async fn call(
    door: &Door,
    trusted: &Generated<rcgen::KeyPair>,
    alpn: &[u8],
) -> io::Result<client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
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
    assert!(!door.certificate.reload().unwrap(), "nothing has changed");

    write(&door.folder, &new);
    assert!(door.certificate.reload().unwrap());
    assert!(call(&door, &new, b"h2").await.is_ok());
    assert!(call(&door, &old, b"h2").await.is_err(), "the old one is still shown");
}

#[tokio::test]
async fn a_half_written_certificate_leaves_the_old_one_in_use() {
    let generated = generate();
    let door = door(&generated, 8).await;
    fs::write(door.folder.path().join("tls.crt"), "-----BEGIN CERT").unwrap();
    assert!(matches!(door.certificate.reload(), Err(CertificateError::Empty { .. })));
    assert!(call(&door, &generated, b"h2").await.is_ok());
}

#[tokio::test]
async fn a_certificate_of_another_key_is_refused_at_start() {
    let (one, other) = (generate(), generate());
    let folder = TempDir::new().unwrap();
    let (chain, key) = write(&folder, &one);
    fs::write(&key, other.signing_key.serialize_pem()).unwrap();
    let error = Certificate::load(chain, key).err().unwrap();
    assert!(matches!(error, CertificateError::Unusable { .. }), "{error}");
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
