#!/usr/bin/env bash
# Runs a command as root, keeping the caller's Rust tools: namespaces and AF_XDP need it.
set -euo pipefail
if [ "$(id -u)" -eq 0 ]; then
    exec "$@"
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    exec sudo --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME,CARGO_TARGET_DIR,TIDEGATE_CORPUS "$@"
else
    echo "This needs root (network namespaces, AF_XDP). Run it as root or install sudo:" >&2
    echo "  $*" >&2
    exit 1
fi
