//! Images of the bed's own: what sandboxes and test pods run. Packed from files of this machine, imported into
//! containerd, never pulled.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use images::Image;

use crate::process::Program;

/// What keeps a pod's namespaces.
pub const PAUSE: &str = "bed/pause:1";
/// busybox and [`hdfs-client`](HDFS_CLIENT); users root and app (1000).
pub const TOOLS: &str = "bed/tools:1";
/// busybox, and links with which Java of the machine runs once `/usr` is mounted; users as in [`TOOLS`].
pub const JAVA: &str = "bed/java:1";
/// Where [`TOOLS`] has the independent HDFS client.
pub const HDFS_CLIENT: &str = "/bin/hdfs-client";

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &str = "[ awk base64 cat chmod cp date dd df echo env false find grep head id kill ln ls md5sum mkdir mount mv nc nslookup od \
    ps pwd readlink rm rmdir sed sh sha256sum sleep sort stat sync tail test timeout touch tr true umount uname wc wget xxd";

/// Packs the images into `folder`, and imports them by `ctr`.
pub(crate) async fn import_own(folder: &Path, hdfs_client: &Path, ctr: &Program) -> Result<()> {
    let pause =
        Image::new(PAUSE).file(BUSYBOX, "/bin/busybox", 0o755).entrypoint([BUSYBOX, "sleep", "2147483647"]);
    let tools = users(with_busybox(Image::new(TOOLS)))
        .binary_with_libraries(hdfs_client, HDFS_CLIENT)
        .environment("PATH", "/bin");
    let java = users(with_busybox(Image::new(JAVA)))
        .symlink("usr/lib", "/lib")
        .symlink("usr/lib64", "/lib64")
        .directory("/usr", 0o755)
        .environment("PATH", "/bin");
    let folder = folder.to_owned();
    let archives = tokio::task::spawn_blocking(move || {
        [("pause", pause), ("tools", tools), ("java", java)]
            .into_iter()
            .map(|(name, image)| {
                let path = folder.join(format!("{name}.tar"));
                image.write_oci_archive(&path).with_context(|| format!("failed to pack image {name}"))?;
                Ok(path)
            })
            .collect::<Result<Vec<PathBuf>>>()
    })
    .await??;
    for archive in archives {
        import(&archive, ctr).await?;
    }
    Ok(())
}

/// Imports one archive.
pub(crate) async fn import(archive: &Path, ctr: &Program) -> Result<()> {
    ctr.clone().args(["images", "import"]).arg(archive).succeed().await.map(drop)
}

fn with_busybox(image: Image) -> Image {
    let image = image
        .file(BUSYBOX, BUSYBOX, 0o755)
        .directory("/tmp", 0o1777)
        .content("hosts: files dns\n", "/etc/nsswitch.conf", 0o644)
        .entrypoint(["/bin/sh"]);
    APPLETS.split_whitespace().fold(image, |image, name| image.symlink("busybox", format!("/bin/{name}")))
}

fn users(image: Image) -> Image {
    image.content("root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n", "/etc/passwd", 0o644).content(
        "root:x:0:\napp:x:1000:\n",
        "/etc/group",
        0o644,
    )
}
