#!/usr/bin/env bash
# Installs Debian/Ubuntu packages that are missing: packages.sh build|test|bench|fuzz
# Does nothing, and needs no privileges, where all of them are there.
set -euo pipefail

# To compile: the XDP program (clang), libxdp and libbpf (through their -sys crates).
build=(clang llvm libelf-dev zlib1g-dev m4 pkg-config libbpf-dev linux-libc-dev make gcc libc6-dev)
# To run the demo: namespaces and veth pairs.
run=(iproute2 ethtool util-linux)
# Real peers of the tests.
test=(frr bird2 python3 python3-venv haproxy tcpdump nginx-light curl nghttp2-client openssl iperf3 nftables procps)
# Peers of the benchmarks. DPDK's AF_XDP driver carries a version in its name: see below.
bench=(dpdk-dev valgrind libndpi-dev libnginx-mod-stream)
driver='librte-net-af-xdp'
# libFuzzer is C++.
fuzz=(g++)

case "${1:-}" in
build) wanted=("${build[@]}" "${run[@]}") ;;
test) wanted=("${build[@]}" "${run[@]}" "${test[@]}") ;;
bench) wanted=("${build[@]}" "${run[@]}" "${test[@]}" "${bench[@]}") ;;
fuzz) wanted=("${build[@]}" "${fuzz[@]}") ;;
*) echo "usage: $0 build|test|bench|fuzz" >&2; exit 2 ;;
esac

missing=()
for p in "${wanted[@]}"; do
    status=$(dpkg-query -W -f '${Status}' "$p" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$p")
done
if [ "$1" = bench ] && ! dpkg-query -W -f '${Status}\n' "$driver*" 2>/dev/null |
    grep -q '^install ok installed'; then
    missing+=("$driver")
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "These packages are missing, and there is no apt-get to install them: ${missing[*]}" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo)
elif command -v sudo >/dev/null && [ -t 0 ]; then
    echo "Installing ${missing[*]} needs root; sudo may ask for your password."
    as_root=(sudo)
else
    echo "These packages are missing, and only root can install them. Run as root:" >&2
    echo "  apt-get install ${missing[*]}" >&2
    exit 1
fi

echo "Installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# Services that packages would start are not wanted: tests run their own in namespaces.
"${as_root[@]}" apt-get update -qq
for i in "${!missing[@]}"; do
    [ "${missing[i]}" = "$driver" ] || continue
    missing[i]=$(apt-cache search --names-only "^$driver[0-9.]*\$" | cut -d ' ' -f 1 | tail -n 1)
    [ -n "${missing[i]}" ] || { echo "No package $driver* here." >&2; exit 1; }
done
"${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
