//! Token service.
fn main() {}
