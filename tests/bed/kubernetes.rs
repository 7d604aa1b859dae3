//! A Kubernetes node with its control plane: etcd, API server, controller manager, scheduler, containerd, kubelet, and
//! a DNS server that knows the bed's names. Programs in pods find the API server at the usual service address, though
//! no service address is ever translated here.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use identity::seal::SealingKey;
use k8s_openapi::{
    List,
    api::core::v1::{Node, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use crate::{
    audit_log::AuditLog,
    host::{API_IP, KUBELET, LAST_POD_IP, NODE_IP, NODE_NAME, POD_SUBNET, SERVICE_SUBNET, TEMPORARY},
    image,
    pki::{Authority, Identity},
    process::{Daemon, Program, until},
    product::NAMESPACE,
    provision::Tools,
};

const READY_LIMIT: Duration = Duration::from_secs(90);
const STATIC_PODS: &str = "static-pods";
/// Names besides those in /etc/hosts, a file for each address.
const NAMES: &str = "names";
/// From a changed file of names to answers.
const NAMES_LIMIT: Duration = Duration::from_secs(10);

/// One of Kubernetes' programs that can be stopped and started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Where the API server keeps its objects.
    Etcd,
    /// The API server.
    ApiServer,
    /// Owners, garbage, namespaces that go.
    ControllerManager,
    /// Gives pods a node.
    Scheduler,
    /// The node's agent; containers run on without.
    Kubelet,
}

/// The node and its control plane.
pub struct Kubernetes {
    folder: PathBuf,
    authority: Authority,
    client: Client,
    kubectl: Program,
    ctr: Program,
    etcd: Daemon,
    api_server: Daemon,
    manager: Daemon,
    scheduler: Daemon,
    kubelet: Daemon,
    audit_log: AuditLog,
    sealing_key: SealingKey,
    others: [Daemon; 2],
}

impl Kubernetes {
    /// Starts everything and waits until pods can run.
    ///
    /// # Errors
    /// When a part does not come up.
    pub(crate) async fn start_new(
        tools: &Tools,
        hdfs_client: &Path,
        state: &Path,
        logs: &Path,
    ) -> Result<Self> {
        let folder = state.join("kubernetes");
        fs::create_dir(&folder)?;
        let authority = Authority::new(&folder.join("pki"))?;
        let program = |name: &str| Program::new(tools.kubernetes.join(name));
        let daemon = |name: &str, program: Program| Daemon::new(name, program, logs);

        let dns = daemon("dns", dns(&folder)?);
        let etcd = daemon("etcd", etcd(program("etcd"), &folder));
        let audit_log = AuditLog::new(logs);
        let api_server = api_server(program("kube-apiserver"), &folder, &authority)?;
        let api_server = daemon("kube-apiserver", audit_log.written_by(api_server, &folder)?);
        let containerd = daemon("containerd", containerd(tools, &folder)?);
        for first in [&etcd, &api_server, &containerd, &dns] {
            first.start().await?;
        }

        let administrator = authority.client("admin", "admin", Some("system:masters"))?;
        let kubeconfig = write_kubeconfig(&folder, &authority, "admin", &administrator)?;
        let kubectl = program("kubectl").env("KUBECONFIG", &kubeconfig).env("KUBECACHEDIR", TEMPORARY);
        let ctr = Program::new(tools.containerd.join("ctr"))
            .arg("--address")
            .arg(containerd_socket(&folder))
            .args(["--namespace", "k8s.io"]);
        let images = async {
            containerd
                .until("answering", READY_LIMIT, async || ctr.clone().arg("version").succeed().await)
                .await?;
            let archives = folder.join("images");
            fs::create_dir(&archives)?;
            image::import_own(&archives, hdfs_client, &ctr).await
        };
        let control_plane = async {
            let client = client(&kubeconfig).await?;
            until_ready(&api_server, &client).await?;
            let manager = daemon(
                "kube-controller-manager",
                program("kube-controller-manager")
                    .arg(flag("kubeconfig", &component(&folder, &authority, "controller-manager")?))
                    .arg(flag("service-account-private-key-file", &folder.join("service-accounts.key")))
                    .arg(flag("root-ca-file", &authority.file()))
                    .args(["--use-service-account-credentials", "--leader-elect=false"]),
            );
            manager.start().await?;
            let scheduler = daemon(
                "kube-scheduler",
                program("kube-scheduler")
                    .arg(flag("kubeconfig", &component(&folder, &authority, "scheduler")?))
                    .arg("--leader-elect=false"),
            );
            scheduler.start().await?;
            Ok((client, manager, scheduler))
        };
        let ((), (client, manager, scheduler)) = tokio::try_join!(images, control_plane)?;

        let kubelet = daemon("kubelet", kubelet(program("kubelet"), &folder, &authority)?);
        kubelet.start().await?;
        let kubernetes = Self {
            folder,
            authority,
            client,
            kubectl,
            ctr,
            etcd,
            api_server,
            manager,
            scheduler,
            kubelet,
            audit_log,
            sealing_key: SealingKey::generate(),
            others: [containerd, dns],
        };
        kubernetes.until_node_ready().await?;
        let accounts: Api<ServiceAccount> = Api::default_namespaced(kubernetes.client());
        until("there: service account default", READY_LIMIT, async || {
            accounts.get("default").await.map_err(Into::into)
        })
        .await?;
        Ok(kubernetes)
    }

    /// A client with all rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client as any user, who may be in a group.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub async fn client_as(&self, user: &str, group: Option<&str>) -> Result<Client> {
        client(&self.kubeconfig_of(user, group)?).await
    }

    /// A kubeconfig file of any user, who may be in a group.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn kubeconfig_of(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let file = format!("user-{}", user.replace([':', '/'], "-"));
        let identity = self.authority.client(&file, user, group)?;
        write_kubeconfig(&self.folder, &self.authority, &file, &identity)
    }

    /// The administrator's kubeconfig file.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// The key that seals pods. The product is given its public half.
    #[must_use]
    pub fn sealing_key(&self) -> &SealingKey {
        &self.sealing_key
    }

    /// What the API server says of requests.
    #[must_use]
    pub fn audit_log(&self) -> &AuditLog {
        &self.audit_log
    }

    /// Who signs the bed's certificates.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// kubectl with all rights; add the arguments.
    #[must_use]
    pub fn kubectl(&self) -> Program {
        self.kubectl.clone()
    }

    /// ctr of the node's containerd; add the arguments.
    #[must_use]
    pub fn ctr(&self) -> Program {
        self.ctr.clone()
    }

    /// Applies YAML or JSON documents, as `kubectl apply -f -`.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub async fn apply(&self, documents: &str) -> Result<String> {
        self.kubectl().args(["apply", "-f", "-"]).succeed_with(documents).await
    }

    /// The folder whose pods kubelet runs without asking the API server.
    #[must_use]
    pub fn static_pods(&self) -> PathBuf {
        self.folder.join(STATIC_PODS)
    }

    /// Imports an image archive.
    ///
    /// # Errors
    /// When containerd refuses it.
    pub async fn import(&self, archive: &Path) -> Result<()> {
        image::import(archive, &self.ctr).await
    }

    /// Gives a name another address, besides those it has: pods find all of them.
    ///
    /// # Errors
    /// When it is not found in time.
    pub async fn add_address(&self, name: &str, address: &str) -> Result<()> {
        fs::write(self.folder.join(NAMES).join(address), format!("{address} {name}\n"))?;
        until("found: another address", NAMES_LIMIT, async || {
            ensure!(resolves(name, address).await?, "{name} is not {address} yet");
            Ok(())
        })
        .await
    }

    /// The end of [`Self::add_address`].
    ///
    /// # Errors
    /// When it is found for longer than it may.
    pub async fn remove_address(&self, name: &str, address: &str) -> Result<()> {
        fs::remove_file(self.folder.join(NAMES).join(address))?;
        until("gone: an address", NAMES_LIMIT, async || {
            ensure!(!resolves(name, address).await?, "{name} is still {address}");
            Ok(())
        })
        .await
    }

    fn daemon(&self, part: Part) -> &Daemon {
        match part {
            Part::Etcd => &self.etcd,
            Part::ApiServer => &self.api_server,
            Part::ControllerManager => &self.manager,
            Part::Scheduler => &self.scheduler,
            Part::Kubelet => &self.kubelet,
        }
    }

    /// Stops one program.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn stop(&self, part: Part) -> Result<()> {
        self.daemon(part).stop().await
    }

    /// Starts one program again, and waits until it serves, as far as it does.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(&self, part: Part) -> Result<()> {
        match part {
            Part::Kubelet => self.start_kubelet().await,
            Part::ControllerManager | Part::Scheduler => self.daemon(part).start().await,
            Part::Etcd | Part::ApiServer => {
                self.daemon(part).start().await?;
                until_ready(&self.api_server, &self.client).await
            }
        }
    }

    /// Takes the API server away for as long as `meanwhile` lasts, and waits until it is ready again.
    ///
    /// # Errors
    /// When it does not go or come, or `meanwhile` fails.
    pub async fn without_api_server(&self, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
        self.stop(Part::ApiServer).await?;
        let outcome = meanwhile.await;
        outcome.and(self.start(Part::ApiServer).await)
    }

    /// kubelet, as a process.
    #[must_use]
    pub fn kubelet(&self) -> &Daemon {
        &self.kubelet
    }

    /// Stops kubelet; containers run on.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn stop_kubelet(&self) -> Result<()> {
        self.kubelet.stop().await
    }

    /// Starts kubelet again, and waits until it serves and has seen its pods again.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_kubelet(&self) -> Result<()> {
        self.kubelet.start().await?;
        self.kubelet
            .until("serving", READY_LIMIT, async || {
                let path = format!("/api/v1/nodes/{NODE_NAME}/proxy/pods");
                let known: List<Pod> = self.client.request(http_get(&path)?).await?;
                let known: Vec<_> = known.items.into_iter().map(|pod| pod.metadata.uid).collect();
                let here = ListParams::default().fields(&format!("spec.nodeName={NODE_NAME}"));
                for pod in Api::<Pod>::all(self.client()).list(&here).await?.items {
                    let name = pod.metadata.name.unwrap_or_default();
                    ensure!(known.contains(&pod.metadata.uid), "pod {name} is not known again yet");
                }
                Ok(())
            })
            .await
    }

    async fn until_node_ready(&self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client());
        self.kubelet
            .until("a ready node", READY_LIMIT, async || {
                let status = nodes.get(NODE_NAME).await?.status.unwrap_or_default();
                let conditions = status.conditions.unwrap_or_default();
                let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
                let ready = ready.context("the node has not said yet whether it is ready")?;
                let why = ready.message.as_deref().unwrap_or_default();
                ensure!(ready.status == "True", "not ready: {why}");
                Ok(())
            })
            .await
    }

    pub(crate) fn logs(&self) -> impl Iterator<Item = &Path> {
        let main = [&self.etcd, &self.manager, &self.scheduler, &self.api_server, &self.kubelet];
        self.others.iter().chain(main).map(Daemon::log)
    }
}

async fn until_ready(api_server: &Daemon, client: &Client) -> Result<()> {
    let probe = async || client.request_text(http_get("/readyz")?).await.map_err(Into::into);
    api_server.until("ready", READY_LIMIT, probe).await.map(drop)
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn flag(name: &str, value: &Path) -> String {
    format!("--{name}={}", value.display())
}

fn containerd_socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

/// A kubeconfig of one of the system's own users.
fn component(folder: &Path, authority: &Authority, name: &str) -> Result<PathBuf> {
    let identity = authority.client(name, &format!("system:kube-{name}"), None)?;
    write_kubeconfig(folder, authority, name, &identity)
}

fn write_kubeconfig(
    folder: &Path,
    authority: &Authority,
    name: &str,
    identity: &Identity,
) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.kubeconfig"));
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {
            "server": format!("https://{API_IP}"),
            "certificate-authority": authority.file(),
        }}],
        "users": [{"name": name, "user": {
            "client-certificate": identity.certificate,
            "client-key": identity.key,
        }}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": name}}],
        "current-context": "bed",
    });
    fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    Ok(path)
}

/// Answers from /etc/hosts and the folder of names, and that there is nothing for all other names.
fn dns(folder: &Path) -> Result<Program> {
    let names = folder.join(NAMES);
    fs::create_dir(&names)?;
    Ok(Program::new("dnsmasq")
        .args(["--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--user=root"])
        .args(["--no-resolv", "--bind-interfaces", "--local=//", "--local=/test/", "--local=/local/"])
        .args(["--pid-file=", &format!("--listen-address={NODE_IP}")])
        .arg(flag("hostsdir", &names)))
}

/// Whether a name has an address for those who ask the DNS server, as pods do.
async fn resolves(name: &str, address: &str) -> Result<bool> {
    let answer = Program::new("getent").args(["--service=dns", "ahostsv4", name]).output().await?;
    Ok(answer.stdout.lines().any(|line| line.split_whitespace().next() == Some(address)))
}

fn etcd(program: Program, folder: &Path) -> Program {
    // Its state is lost with the bed anyway: it need not reach a disk.
    program.arg(flag("data-dir", &folder.join("etcd"))).args(["--unsafe-no-fsync", "--log-level=warn"])
}

fn api_server(program: Program, folder: &Path, authority: &Authority) -> Result<Program> {
    let serving = authority.server(
        "kube-apiserver",
        &[
            "kubernetes.default.svc",
            "kubernetes.default",
            "localhost",
            "bed.bed.test",
            "127.0.0.1",
            NODE_IP,
            API_IP,
        ],
    )?;
    let to_kubelet = authority.client("apiserver-kubelet", "kube-apiserver", Some("system:masters"))?;
    let signing = rcgen::KeyPair::generate()?;
    let (private, public) = (folder.join("service-accounts.key"), folder.join("service-accounts.pub"));
    fs::write(&private, signing.serialize_pem())?;
    fs::write(&public, signing.public_key_pem())?;
    Ok(program
        .args(["--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--secure-port=443"])
        .arg(format!("--advertise-address={NODE_IP}"))
        .args(["--endpoint-reconciler-type=none", "--allow-privileged"])
        .arg(format!("--service-cluster-ip-range={SERVICE_SUBNET}"))
        .arg(flag("tls-cert-file", &serving.certificate))
        .arg(flag("tls-private-key-file", &serving.key))
        .arg(flag("client-ca-file", &authority.file()))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(flag("service-account-key-file", &public))
        .arg(flag("service-account-signing-key-file", &private))
        .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
        // Services of webhooks are found by their endpoints: no service address is translated here.
        .arg("--enable-aggregator-routing")
        .arg(flag("admission-control-config-file", &admission(folder, authority)?))
        .arg(flag("kubelet-certificate-authority", &authority.file()))
        .arg(flag("kubelet-client-certificate", &to_kubelet.certificate))
        .arg(flag("kubelet-client-key", &to_kubelet.key))
        .arg("--kubelet-preferred-address-types=InternalIP"))
}

/// Has the API server show a certificate to our webhook, if that asks for one, and to no other.
fn admission(folder: &Path, authority: &Authority) -> Result<PathBuf> {
    let identity = authority.client("apiserver-webhook", "kube-apiserver", None)?;
    let credentials = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "users": [{
            "name": format!("hadoop-token-csi-webhook.{NAMESPACE}.svc"),
            "user": {"client-certificate": identity.certificate, "client-key": identity.key},
        }],
    });
    let users = folder.join("webhooks.kubeconfig");
    fs::write(&users, serde_json::to_vec_pretty(&credentials)?)?;
    let version = "apiserver.config.k8s.io/v1";
    let configuration =
        json!({"apiVersion": version, "kind": "WebhookAdmissionConfiguration", "kubeConfigFile": users});
    let plugins = ["MutatingAdmissionWebhook", "ValidatingAdmissionWebhook"]
        .map(|name| json!({"name": name, "configuration": configuration}));
    let file = folder.join("admission.yaml");
    let admission = json!({"apiVersion": version, "kind": "AdmissionConfiguration", "plugins": plugins});
    fs::write(&file, serde_json::to_vec_pretty(&admission)?)?;
    Ok(file)
}

fn containerd(tools: &Tools, folder: &Path) -> Result<Program> {
    let networks = folder.join("networks");
    fs::create_dir(&networks)?;
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "bed",
        "plugins": [{
            "type": "bridge",
            "bridge": "bed0",
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": folder.join("addresses"),
                "ranges": [[{"subnet": POD_SUBNET, "rangeEnd": LAST_POD_IP}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    fs::write(networks.join("bed.conflist"), serde_json::to_vec_pretty(&network)?)?;
    let configuration = folder.join("containerd.toml");
    // restrict_oom_score_adj: the machine may lack CAP_SYS_RESOURCE, without which no container would start.
    fs::write(
        &configuration,
        format!(
            r#"version = 3
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{networks}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"#,
            folder = folder.display(),
            socket = containerd_socket(folder).display(),
            pause = image::PAUSE,
            networks = networks.display(),
        ),
    )?;
    Ok(Program::new(tools.containerd.join("containerd"))
        .arg("--config")
        .arg(configuration)
        .env("PATH", path_with(&tools.containerd)?))
}

fn kubelet(program: Program, folder: &Path, authority: &Authority) -> Result<Program> {
    let user = authority.client("kubelet", &format!("system:node:{NODE_NAME}"), Some("system:nodes"))?;
    let serving = authority.server("kubelet-server", &[NODE_NAME, NODE_IP])?;
    let kubeconfig = write_kubeconfig(folder, authority, "kubelet", &user)?;
    let (configuration, static_pods) = (folder.join("kubelet.json"), folder.join(STATIC_PODS));
    fs::create_dir(&static_pods)?;
    let settings = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": authority.file()},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": serving.certificate,
        "tlsPrivateKeyFile": serving.key,
        "containerRuntimeEndpoint": format!("unix://{}", containerd_socket(folder).display()),
        "clusterDNS": [NODE_IP],
        "clusterDomain": "cluster.local",
        "staticPodPath": static_pods,
        "makeIPTablesUtilChains": false,
        // The machine may have control groups of version 1, which kubelet else refuses.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        // Tests end programs over and over; without, kubelet waits up to five minutes before it starts one again.
        "featureGates": {"KubeletCrashLoopBackOffMax": true},
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        // However full the machine is, it is not for the bed to clean up.
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
    });
    fs::write(&configuration, serde_json::to_vec_pretty(&settings)?)?;
    Ok(program
        .arg(flag("config", &configuration))
        .arg(flag("kubeconfig", &kubeconfig))
        .arg(flag("root-dir", Path::new(KUBELET)))
        .arg(flag("cert-dir", &folder.join("pki")))
        .arg(format!("--hostname-override={NODE_NAME}"))
        .arg(format!("--node-ip={NODE_IP}")))
}

/// `PATH` with `folder` before the rest.
pub(crate) fn path_with(folder: &Path) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(env::split_paths(&path));
    Ok(env::join_paths(folders)?)
}
