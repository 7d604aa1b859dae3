//! Compiles the `.proto` files with protox, so that no `protoc` has to be installed.

/// Messages that carry secrets: their `Debug` is written by hand in `src/redact.rs`.
const SECRET: [&str; 5] = [
    ".csi.v1.NodePublishVolumeRequest",
    ".hadoop_token_csi.token.v1.CheckRequest",
    ".hadoop_token_csi.token.v1.IssueRequest",
    ".hadoop_token_csi.token.v1.Renewal",
    ".hadoop_token_csi.token.v1.Token",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["csi.proto", "registration.proto", "token.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
