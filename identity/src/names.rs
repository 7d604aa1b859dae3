//! What objects may be called.

/// Whether `name` is a DNS subdomain as Kubernetes wants it: what namespaces, pods, volumes and clusters are called.
#[must_use]
pub fn is_object_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.chars().all(|c| plain(c) || c == '-' || c == '.')
        && name.starts_with(plain)
        && name.ends_with(plain)
        && !name.contains("..")
}
