//! Archives read back the way a container runtime reads them.

use std::{collections::BTreeMap, io::Read};

use flate2::read::GzDecoder;
use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// Files of a tar: path → (kind, mode, content, link target).
type Files = BTreeMap<String, (tar::EntryType, u32, Vec<u8>, String)>;

fn files(tar: &[u8]) -> Files {
    let mut files = Files::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
        let path = entry.path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned();
        let target = entry.link_name().unwrap().map(|path| path.display().to_string()).unwrap_or_default();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(path, (header.entry_type(), header.mode().unwrap(), content, target));
    }
    files
}

struct Imported {
    manifest: Value,
    config: Value,
    annotations: Value,
    digest: String,
    layer: Files,
}

/// Follows index, manifest and blobs by their digests, as a runtime does.
fn import(path: &Path) -> Imported {
    let archive = files(&fs::read(path).unwrap());
    let blob = |descriptor: &Value| -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
        let bytes = archive[&format!("blobs/{digest}")].2.clone();
        assert_eq!(descriptor["size"].as_u64().unwrap(), bytes.len() as u64);
        bytes
    };
    assert!(archive["oci-layout"].2.starts_with(br#"{"imageLayoutVersion""#));
    let index: Value = serde_json::from_slice(&archive["index.json"].2).unwrap();
    let descriptor = &index["manifests"][0];
    let manifest: Value = serde_json::from_slice(&blob(descriptor)).unwrap();
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
    let mut layer = Vec::new();
    GzDecoder::new(&*blob(&manifest["layers"][0])).read_to_end(&mut layer).unwrap();
    Imported {
        config,
        annotations: descriptor["annotations"].clone(),
        digest: descriptor["digest"].as_str().unwrap().to_owned(),
        layer: files(&layer),
        manifest,
    }
}

fn sample() -> Image {
    Image::new("example/sample:1")
        .content("root:x:0:0::/:/bin/sh\n", "/etc/passwd", 0o644)
        .directory("/tmp", 0o1777)
        .symlink("busybox", "/bin/sh")
        .entrypoint(["/bin/sh", "-c"])
        .environment("PATH", "/bin")
        .user("7:8")
}

#[test]
fn reads_its_own_archive_back() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("sample.tar");
    let archive = sample().write_oci_archive(&path).unwrap();
    let image = import(&path);

    assert_eq!(archive.digest, image.digest);
    assert_eq!(archive.size, fs::metadata(&path).unwrap().len());
    assert_eq!(image.annotations["io.containerd.image.name"], "docker.io/example/sample:1");
    assert_eq!(image.annotations["org.opencontainers.image.ref.name"], "1");
    assert_eq!(image.manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(image.config["config"]["Entrypoint"], serde_json::json!(["/bin/sh", "-c"]));
    assert_eq!(image.config["config"]["Env"], serde_json::json!(["PATH=/bin"]));
    assert_eq!(image.config["config"]["User"], "7:8");

    let names: Vec<_> = image.layer.keys().map(String::as_str).collect();
    assert_eq!(names, ["bin", "bin/sh", "etc", "etc/passwd", "tmp"]);
    assert_eq!(image.layer["etc"].1, 0o755);
    assert_eq!(image.layer["etc/passwd"].2, b"root:x:0:0::/:/bin/sh\n");
    assert_eq!(image.layer["tmp"].1, 0o1777);
    assert_eq!((image.layer["bin/sh"].0, &*image.layer["bin/sh"].3), (tar::EntryType::Symlink, "busybox"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-written stays");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (folder.path().join("one.tar"), folder.path().join("two.tar"));
    sample().write_oci_archive(&one).unwrap();
    sample().write_oci_archive(&two).unwrap();
    assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
}

#[test]
fn a_dynamic_program_comes_with_its_loader_and_libraries() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("self.tar");
    let program = std::env::current_exe().unwrap();
    Image::new("self").binary_with_libraries(&program, "/bin/self").write_oci_archive(&path).unwrap();
    let layer = import(&path).layer;
    assert_eq!(layer["bin/self"].2, fs::read(program).unwrap());
    assert!(layer.keys().any(|name| name.contains("libc.so.6")), "{:?}", layer.keys());
    assert!(layer.keys().any(|name| name.contains("ld-linux")), "{:?}", layer.keys());
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("missing.tar");
    let image = Image::new("missing").file("/nonexistent/program", "/bin/program", 0o755);
    let error = image.write_oci_archive(&path).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/program"), "{error:#}");
    assert!(!path.exists());
}

#[test]
fn refuses_a_path_that_is_not_absolute_and_plain() {
    for path in ["bin/program", "/bin/../etc/passwd", "/", "", "/bin//program"] {
        let image = Image::new("wrong").content("", path, 0o644);
        assert!(image.entries().is_err(), "{path:?} was taken");
    }
    let below_a_file = Image::new("wrong").content("", "/bin", 0o644).content("", "/bin/program", 0o755);
    assert!(below_a_file.entries().is_err());
}
