//! CSI node plugin.
fn main() {}
