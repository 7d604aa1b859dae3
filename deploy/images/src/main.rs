//! `images`: packs node plugin, controller and webhook into image archives, one for each.

use std::{
    io::{Write, stdout},
    path::PathBuf,
};

use anyhow::Context;
use clap::Parser;
use images::Image;

/// Packs our programs into OCI image archives.
#[derive(Parser, Debug)]
struct Args {
    /// The node plugin, compiled.
    #[arg(long)]
    driver: PathBuf,
    /// The controller, compiled.
    #[arg(long)]
    controller: PathBuf,
    /// The webhook, compiled.
    #[arg(long)]
    webhook: PathBuf,
    /// Folder for the archives; made if it does not exist.
    #[arg(long)]
    output: PathBuf,
    /// Tag of the images.
    #[arg(long)]
    tag: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("failed to make {}", args.output.display()))?;
    for (image, file) in [
        (driver(&args), "hadoop-token-csi-driver.tar"),
        (controller(&args), "hadoop-token-csi-controller.tar"),
        (webhook(&args), "hadoop-token-csi-webhook.tar"),
    ] {
        let path = args.output.join(file);
        let archive = image.write_oci_archive(&path)?;
        writeln!(
            stdout(),
            "{}  {}  {} bytes  {}",
            path.display(),
            archive.reference,
            archive.size,
            archive.digest
        )?;
    }
    Ok(())
}

/// The node plugin mounts, so it runs as root and needs no user name.
fn driver(args: &Args) -> Image {
    Image::new(format!("hadoop-token-csi/driver:{}", args.tag))
        .binary_with_libraries(&args.driver, "/bin/hadoop-token-csi-driver")
        .entrypoint(["/bin/hadoop-token-csi-driver"])
}

/// The controller. What MIT Kerberos could load at run time (PKINIT, OTP, a KDC proxy) is not needed to log in
/// from a keytab; glibc finds hosts by files and DNS without modules, once told to by nsswitch.conf.
fn controller(args: &Args) -> Image {
    Image::new(format!("hadoop-token-csi/controller:{}", args.tag))
        .binary_with_libraries(&args.controller, "/bin/hadoop-token-csi-controller")
        .content("hadoop-token-csi:x:65532:65532::/:/sbin/nologin\n", "/etc/passwd", 0o644)
        .content("hadoop-token-csi:x:65532:\n", "/etc/group", 0o644)
        .content("hosts: files dns\n", "/etc/nsswitch.conf", 0o644)
        .directory("/tmp", 0o1777)
        .user("65532:65532")
        .entrypoint(["/bin/hadoop-token-csi-controller"])
}

/// The webhook finds the API server by address, and needs no user name.
fn webhook(args: &Args) -> Image {
    Image::new(format!("hadoop-token-csi/webhook:{}", args.tag))
        .binary_with_libraries(&args.webhook, "/bin/hadoop-token-csi-webhook")
        .user("65532:65532")
        .entrypoint(["/bin/hadoop-token-csi-webhook"])
}
