//! Certificates are checked by TLS itself, on a clock of the test's.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr},
};

use proptest::prelude::*;
use rcgen::{CertifiedIssuer, ExtendedKeyUsagePurpose};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, ServerConnection,
    client::WantsClientCert,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    time_provider::TimeProvider,
};
use tokio::time::Instant;

use super::{
    authority::{KEPT_AFTER_END, MOST},
    *,
};

const DATE: i64 = 1_800_000_000;
const DAY: i64 = 24 * 60 * 60;
const HOST: &str = "webhook.product.svc";
const LIFETIME: Duration = Duration::from_hours(48);
const SETTLING: Duration = Duration::from_secs(5);

fn make(date: i64) -> Identity {
    Identity::make(HOST, date, LIFETIME).unwrap()
}

#[derive(Debug)]
struct Fixed(i64);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.unsigned_abs())))
    }
}

/// What an API server with this bundle does at this date.
fn believes(bundle: &str, identity: &Identity, host: &str, date: i64) -> bool {
    let client = |roots: ConfigBuilder<ClientConfig, WantsClientCert>| roots.with_no_client_auth();
    speaks(bundle, identity.server(None).unwrap(), client, host, date)
}

/// Whether a whole handshake in memory, and a byte after it, come to anything.
fn speaks(
    bundle: &str,
    server: Arc<ServerConfig>,
    client: impl FnOnce(ConfigBuilder<ClientConfig, WantsClientCert>) -> ClientConfig,
    host: &str,
    date: i64,
) -> bool {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_details(provider, Arc::new(Fixed(date)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = client(config);
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        if server.process_new_packets().is_err() {
            return false;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            if client.process_new_packets().is_err() {
                return false;
            }
        }
    }
    server.writer().write_all(b"!").unwrap();
    wire.clear();
    server.write_tls(&mut wire).unwrap();
    client.read_tls(&mut wire.as_slice()).unwrap();
    client.process_new_packets().unwrap();
    let mut byte = [0];
    client.reader().read_exact(&mut byte).is_ok()
}

fn set<'a>(identities: impl IntoIterator<Item = &'a Identity>) -> BTreeSet<Authority> {
    identities.into_iter().map(|identity| identity.authority.clone()).collect()
}

#[test]
fn a_certificate_is_believed_by_its_own_authority_alone_for_its_name_and_time() {
    let (one, other) = (make(DATE), make(DATE));
    let bundle = bundle(&set([&one]));
    assert!(believes(&bundle, &one, HOST, DATE));
    assert!(!believes(&bundle, &other, HOST, DATE), "another authority's");
    assert!(!believes(&bundle, &one, "controller.product.svc", DATE), "another name");
    assert!(believes(&bundle, &one, HOST, DATE - 3000), "an API server whose clock is behind");
    assert!(believes(&bundle, &one, HOST, one.end - 1) && !believes(&bundle, &one, HOST, one.end + 1));
}

#[test]
fn a_bundle_of_many_lets_each_be_believed() {
    let identities: Vec<Identity> = (0..5).map(|number| make(DATE + number)).collect();
    let bundle = bundle(&set(&identities));
    assert!(identities.iter().all(|identity| believes(&bundle, identity, HOST, DATE + 10)));
}

#[test]
fn where_api_servers_have_to_show_certificates_nobody_else_gets_a_word_in() {
    let identity = make(DATE);
    let bundle = bundle(&set([&identity]));
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, authority.pem()).unwrap();
    let clients = ClientAuthority::load(&file).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &authority).unwrap();

    let server = identity.server(Some(&clients)).unwrap();
    let with = |roots: ConfigBuilder<ClientConfig, WantsClientCert>| {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        roots.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
    };
    assert!(speaks(&bundle, server.clone(), with, HOST, DATE));
    let without = |roots: ConfigBuilder<ClientConfig, WantsClientCert>| roots.with_no_client_auth();
    assert!(!speaks(&bundle, server, without, HOST, DATE));
}

#[test]
fn an_address_can_be_the_name() {
    let address = IpAddr::from(Ipv4Addr::LOCALHOST).to_string();
    let identity = Identity::make(&address, DATE, LIFETIME).unwrap();
    assert!(believes(&bundle(&set([&identity])), &identity, &address, DATE));
}

#[test]
fn a_bundle_is_read_as_it_was_written() {
    let authorities = set(&[make(DATE), make(DATE + 1), make(DATE + 2)]);
    let pem = bundle(&authorities);
    assert_eq!(read(pem.as_bytes()), authorities);
    assert_eq!(bundle(&read((pem.clone() + &pem).as_bytes())), pem);
}

#[test]
fn nothing_that_is_not_of_ours_stays_in_a_bundle() {
    let own = make(DATE);
    let stranger = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap().cert.pem();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\nnonsense\n";
    let pem = stranger + broken + &bundle(&set([&own]));
    assert_eq!(read(pem.as_bytes()), set([&own]));
    assert!(read(b"\xff\x00").is_empty());
}

#[test]
fn an_authority_leaves_the_bundle_when_it_has_ended_or_retired() {
    let (ended, live, retired, own) = (make(DATE - 10 * DAY), make(DATE - DAY), make(DATE), make(DATE));
    let skewed = make(DATE - 2 * DAY - 3600); // ended an hour ago, by our clock
    let present = set([&ended, &live, &retired, &skewed]);
    let wanted = wanted(present, &set([&own]), &set([&retired]), DATE);
    assert_eq!(wanted, set([&live, &own, &skewed]));
}

#[test]
fn a_bundle_is_bounded_and_never_lacks_our_own() {
    let own = make(DATE - DAY);
    let identities: Vec<Identity> = (0..MOST + 10).map(|_| make(DATE)).collect();
    let wanted = wanted(set(&identities), &set([&own]), &BTreeSet::new(), DATE);
    assert_eq!(wanted.len(), MOST);
    assert!(wanted.contains(&own.authority));
}

/// Replicas, API servers and clocks, for as long as a test likes.
struct Life {
    rotation: Rotation,
    start: Instant,
    shown: usize,
}

impl Life {
    fn new() -> Self {
        Self { rotation: Rotation::new(make(DATE), SETTLING), start: Instant::now(), shown: 0 }
    }

    fn now(&self, seconds: i64) -> Now {
        Now { date: DATE + seconds, at: self.start + Duration::from_secs(seconds.unsigned_abs()) }
    }

    /// What a replica does at a pass, and the API server when it can be reached.
    fn pass(&mut self, now: Now, bundle: &mut BTreeSet<Authority>, reachable: bool) {
        loop {
            match self.rotation.step(now) {
                Step::Nothing => break,
                Step::Make => self.rotation.succeed_by(make(now.date)),
                Step::Show => {
                    self.rotation.show_next();
                    self.shown += 1;
                }
            }
        }
        if reachable {
            *bundle = wanted(bundle.clone(), &self.rotation.own(), self.rotation.retired(), now.date);
            self.rotation.written(bundle, now);
        }
    }
}

#[test]
fn a_successor_is_shown_only_when_it_has_been_believed_for_a_while() {
    let (mut life, mut bundle) = (Life::new(), BTreeSet::new());
    life.pass(life.now(0), &mut bundle, true);
    assert!(!life.rotation.is_believed(life.now(4)) && life.rotation.is_believed(life.now(5)));

    let half = DAY;
    assert_eq!(life.rotation.step(life.now(half - 1)), Step::Nothing);
    let first = life.rotation.current().authority.clone();
    life.pass(life.now(half), &mut bundle, false);
    life.pass(life.now(half + 60), &mut bundle, false);
    assert_eq!(life.rotation.current().authority, first, "nobody could be told of the successor");
    life.pass(life.now(half + 120), &mut bundle, true);
    assert_eq!((bundle.len(), life.shown), (2, 0));
    assert_eq!(life.rotation.step(life.now(half + 124)), Step::Nothing);
    life.pass(life.now(half + 125), &mut bundle, true);
    assert_eq!((bundle.len(), life.shown), (1, 1), "the former one is out of use");
    assert!(life.rotation.is_believed(life.now(half + 125)), "ready without a gap");
    assert_eq!(life.rotation.current().made, DATE + half);
}

#[test]
fn a_bundle_that_somebody_emptied_is_not_believed_until_it_is_repaired() {
    let (mut life, mut bundle) = (Life::new(), BTreeSet::new());
    life.pass(life.now(0), &mut bundle, true);
    life.rotation.written(&BTreeSet::new(), life.now(10));
    assert!(!life.rotation.is_believed(life.now(100)));
    life.pass(life.now(101), &mut bundle, true);
    assert!(life.rotation.is_believed(life.now(106)));
}

#[test]
fn a_clock_that_is_set_back_or_forth_leads_to_a_certificate_of_now() {
    for jump in [-30 * DAY, 30 * DAY] {
        let (mut life, mut bundle) = (Life::new(), BTreeSet::new());
        life.pass(life.now(0), &mut bundle, true);
        let now = |seconds: u64| Now { date: DATE + jump, at: life.start + Duration::from_secs(seconds) };
        let (early, late) = (now(10), now(20));
        life.pass(early, &mut bundle, true);
        life.pass(late, &mut bundle, true);
        assert_eq!((life.rotation.current().made, life.shown), (DATE + jump, 1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Two replicas, an API server that is away at times, passes at any distance: nobody takes away what another one
    /// shows, and nothing is left behind.
    #[test]
    fn what_a_replica_shows_stays_in_the_bundle(
        passes in prop::collection::vec((0usize..2, 1i64..12 * 3600, prop::bool::weighted(0.7)), 1..60),
    ) {
        let (mut lives, mut bundle) = ([Life::new(), Life::new()], BTreeSet::new());
        let (mut time, mut written) = (0, BTreeSet::new());
        for (who, wait, reachable) in passes {
            time += wait;
            let now = lives[who].now(time);
            lives[who].pass(now, &mut bundle, reachable);
            if reachable {
                written.insert(lives[who].rotation.current().authority.clone());
                let of_both = lives.iter().flat_map(|life| [life.rotation.own(), life.rotation.retired().clone()]);
                let of_both: BTreeSet<Authority> = of_both.flatten().collect();
                prop_assert!(bundle.is_subset(&of_both), "an authority is nobody's");
            }
            for life in &lives {
                let Identity { authority, end, .. } = life.rotation.current();
                let ended = now.date >= end + KEPT_AFTER_END;
                prop_assert!(!written.contains(authority) || bundle.contains(authority) || ended);
            }
            let Identity { made, .. } = *lives[who].rotation.current();
            let looked_after = bundle.contains(&lives[who].rotation.current().authority);
            prop_assert!(!reachable || looked_after, "made at {made}, not written at {}", now.date);
        }
    }
}
