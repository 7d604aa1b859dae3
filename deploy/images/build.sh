#!/bin/bash
# Builds the programs and packs them into OCI archives.
#   usage: build.sh OUTPUT-FOLDER
# Node plugin and webhook become static programs, each alone in its image. The controller stays dynamic, because MIT
# Kerberos is.
# PROFILE (default release) and TAG (default: the workspace's version) may be set in the environment.
set -eu
output=$(mkdir -p "$1" && realpath "$1")
cd "$(dirname "$0")/../.."
profile=${PROFILE:-release}
tag=${TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)}
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-target}
folder=${profile/#dev/debug}

# What is shipped has the features that it needs. For tests, dependencies are shared with `cargo test --workspace`, and
# among static programs.
selection=(--package controller --package images)
static=("--package driver" "--package webhook")
if [ "$profile" = dev ]; then
    selection=(--workspace)
    static=("--package driver --package webhook")
fi

variable=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")_RUSTFLAGS
for packages in "${static[@]}"; do
    # shellcheck disable=SC2086
    env "$variable=-C target-feature=+crt-static" \
        cargo build --locked --profile "$profile" $packages --target "$host"
done
cargo build --locked --profile "$profile" "${selection[@]}" --bin hadoop-token-csi-controller --bin images
"$target/$folder/images" \
    --driver "$target/$host/$folder/hadoop-token-csi-driver" \
    --webhook "$target/$host/$folder/hadoop-token-csi-webhook" \
    --controller "$target/$folder/hadoop-token-csi-controller" \
    --output "$output" --tag "$tag"
