#!/bin/bash
# Installs the Debian packages that compiling needs; says so only when something is missing.
set -eu
needed=(libkrb5-dev libclang-dev pkg-config gcc g++)
missing=()
for package in "${needed[@]}"; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "Installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
