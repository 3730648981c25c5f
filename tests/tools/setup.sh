#!/usr/bin/env bash
# Installs what the build and the tests need on a fresh Debian or Ubuntu machine. Run it again at will: what is
# there already is left alone.
#
#   setup.sh build    what `make demo` needs: a C compiler, a Rust toolchain, mkfs.ext4, debugfs
#   setup.sh          the above, and what `make test` needs: QEMU and a tiny guest for it, qemu-img, libnbd, xfsprogs, btrfs-progs, faketime, fio, PostgreSQL, ip, systemd-analyze,
#                     Azurite (npm), moto (PyPI)
#
# System packages come through apt (as root, or by sudo). Everything else goes to target/peers in this repository.
set -euo pipefail

readonly AZURITE_VERSION=3.35.0 # the last that runs on Node 20
readonly MOTO_VERSION=5.2.5
readonly MOTO_OLDEST=5.1.0 # a moto_server that the machine has is used from this version on

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
peers=${LANDFALL_PEERS:-$root/target/peers}
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "root is needed for '$*' and there is no sudo: run it as root, then try again"
    fi
}

packages=()
# want COMMAND PACKAGE...: the command is needed; if it is absent, these packages bring it.
want() {
    local command=$1
    shift
    have "$command" || packages+=("$@")
}

install_packages() {
    [ "${#packages[@]}" -gt 0 ] || return 0
    have apt-get || fail "missing: ${packages[*]}; this machine has no apt-get: install them by its own means"
    say "installing ${packages[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    packages=()
}

# A Rust toolchain of at least the version that Cargo.toml asks for.
rust_toolchain() {
    local need
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    if ! cargo --version >/dev/null 2>&1; then # absent, or rustup's stand-in without a toolchain behind it
        if ! have rustup && have apt-cache && {
            apt-cache show rustup >/dev/null 2>&1 || { as_root apt-get update -qq && apt-cache show rustup >/dev/null 2>&1; }
        }; then
            packages+=(rustup)
            install_packages
        fi
        have rustup || fail "no cargo, and no package 'rustup' here (Debian 13 and Ubuntu 24.04 have it): install Rust $need or newer with rustup, then try again"
        say "installing the stable Rust toolchain"
        rustup default stable >/dev/null
    fi
    local found
    found=$(cargo --version | cut -d' ' -f2)
    at_least "$found" "$need" || fail "cargo $found is too old, $need is needed: run 'rustup update stable', then try again"
}

# at_least FOUND NEEDED: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

azurite() {
    local main=$peers/node/node_modules/azurite/dist/src/blob/main.js
    [ -f "$main" ] && return 0
    say "installing azurite $AZURITE_VERSION into ${peers#"$root"/}/node"
    mkdir -p "$peers/node"
    npm install --prefix "$peers/node" --no-save --no-audit --no-fund --loglevel=error "azurite@$AZURITE_VERSION" >/dev/null
    [ -f "$main" ] || fail "npm installed azurite, but $main is not there"
}

# moto_ready PYTHON: whether this Python can run a moto server that is new enough.
moto_ready() {
    local found
    found=$("$1" -c 'import flask, flask_cors, moto, moto.server, moto.s3.models; print(moto.__version__)' 2>/dev/null) &&
        at_least "$found" "$MOTO_OLDEST"
}

# The harness starts target/peers/moto_server; which Python stands behind it is decided here.
moto() {
    local python=$peers/venv/bin/python
    mkdir -p "$peers"
    if have python3 && moto_ready python3; then
        python=$(python3 -c 'import sys; print(sys.executable)')
    elif ! { [ -x "$python" ] && moto_ready "$python"; }; then
        say "installing moto $MOTO_VERSION into ${peers#"$root"/}/venv"
        python3 -m venv "$peers/venv"
        "$python" -m pip install --quiet --disable-pip-version-check "moto[server,s3]==$MOTO_VERSION"
        moto_ready "$python" || fail "pip installed moto, but it does not start"
    fi
    printf '#!/bin/sh\nexec "%s" "%s/tests/tools/moto_server.py" "$@"\n' "$python" "$root" >"$peers/moto_server"
    chmod +x "$peers/moto_server"
}

# The reader of the format in Python has packages of its own.
reader() {
    local python=$peers/reader/bin/python
    [ -x "$python" ] && "$python" -c 'import blake3, zstandard, cryptography' 2>/dev/null && return 0
    say "installing the Python reader's packages into ${peers#"$root"/}/reader"
    python3 -m venv "$peers/reader"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$root/tests/reader/requirements.txt"
}

# The package of a kernel for virtual machines, by the lists that apt has now.
guest_kernel() {
    local meta
    for meta in linux-image-cloud-amd64 linux-image-virtual; do # Debian, Ubuntu
        apt-cache depends "$meta" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p'
    done | head -n1
}

# guest_packages FOLDER: gets that kernel and the guest's agent. As whoever runs this: apt would else become its own user, who may not write here.
guest_packages() {
    local kernel
    kernel=$(guest_kernel)
    [ -n "$kernel" ] && (cd "$1" && apt-get -o APT::Sandbox::User=root download -qq "$kernel" qemu-guest-agent)
}

# A kernel and an agent for a guest that boots in seconds: what tests/src/guest.rs starts. Nothing of it is installed on this machine.
guest() {
    local folder=$peers/guest made
    [ -f "$folder/made-1" ] && return 0
    [ "$(uname -m)" = x86_64 ] || fail "the guest of the tests is x86_64, this machine is $(uname -m): set up a test machine of that kind"
    say "making a guest in ${peers#"$root"/}/guest"
    rm -rf "$folder"
    mkdir -p "$folder/unpacked" "$folder/initrd.d/bin" "$folder/initrd.d/lib" "$folder/agent"
    # The lists may be old, or not there: machines that have all packages never asked for them.
    guest_packages "$folder" 2>/dev/null || {
        as_root apt-get update -qq
        guest_packages "$folder" || fail "no kernel for a guest among the packages: see what 'apt-get update' says"
    }
    for made in "$folder"/*.deb; do
        dpkg-deb -x "$made" "$folder/unpacked"
    done
    cp "$folder"/unpacked/boot/vmlinuz-* "$folder/vmlinuz"
    local module file
    for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net \
        virtio_console scsi_common scsi_mod sd_mod virtio_scsi; do
        file=$(find "$folder/unpacked" -name "$module.ko" -o -name "$module.ko.xz" | head -n1)
        case $file in
        '') continue ;; # built into this kernel
        *.xz) xz -dc "$file" >"$folder/initrd.d/lib/$module.ko" ;;
        *) cp "$file" "$folder/initrd.d/lib/" ;;
        esac
        printf 'insmod /lib/%s.ko\n' "$module"
    done >"$folder/initrd.d/modules"
    cp "$(command -v busybox)" "$folder/initrd.d/bin/busybox"
    cp "$root/tests/tools/guest-initrd.sh" "$folder/initrd.d/init"
    chmod 755 "$folder/initrd.d/init"
    (cd "$folder/initrd.d" && find . | cpio --quiet -o -H newc | gzip -9 >"$folder/initrd")
    # The agent and the libraries of this machine that it stands on: its system is the same.
    cp "$folder/unpacked/usr/sbin/qemu-ga" "$folder/agent/"
    ldd "$folder/agent/qemu-ga" | grep -o '/[^ ]*' | while read -r file; do cp -L "$file" "$folder/agent/"; done
    rm -rf "$folder/unpacked" "$folder/initrd.d" "$folder"/*.deb
    touch "$folder/made-1"
}

case ${1:-test} in
build | test) ;;
*) fail "unknown argument '$1': use 'build' or nothing" ;;
esac

want cc build-essential
want mkfs.ext4 e2fsprogs
want debugfs e2fsprogs
want git git
if [ "${1:-test}" = test ]; then
    want qemu-img qemu-utils
    want qemu-io qemu-utils
    want nbdcopy libnbd-bin
    want nbdinfo libnbd-bin
    want mkfs.xfs xfsprogs
    want faketime faketime
    want unshare util-linux
    want setpriv util-linux
    want fsfreeze util-linux
    want losetup mount
    want fio fio
    want mkfs.btrfs btrfs-progs
    want addpart util-linux
    want filefrag e2fsprogs
    want ip iproute2
    want mtype mtools
    want blkid util-linux
    want systemd-analyze systemd
    want qemu-system-x86_64 qemu-system-x86 seabios ipxe-qemu
    want nbdinfo libnbd-bin
    want cpio cpio
    want xz xz-utils
    busybox 2>/dev/null | grep -q . && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || packages+=(busybox-static)
    want node nodejs npm
    want npm npm
    # Not on the PATH. Of any version from 14 on, which has pg_amcheck.
    compgen -G '/usr/lib/postgresql/*/bin/pg_amcheck' >/dev/null || have pg_amcheck || packages+=(postgresql)
    have python3 || packages+=(python3 python3-venv)
    have python3 && ! python3 -c 'import ensurepip, venv' 2>/dev/null && packages+=(python3-venv)
fi
install_packages
rust_toolchain
if [ "${1:-test}" = test ]; then
    node_major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
    [ "$node_major" -ge 18 ] || fail "node $(node --version) is too old for azurite $AZURITE_VERSION: 18 or newer is needed"
    azurite
    moto
    reader
    guest
fi
say "ready"
