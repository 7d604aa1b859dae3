//! OCI images.
fn main() {}
