#!/bin/sh
# Makes a Debian 12 machine ready for ./run.sh and ./test.sh: Debian packages, .venv from the hashed lock, compiled code.
# Does only what is missing, so a second run takes about a second. `./setup.sh tests` adds what only tests and benches need.
set -eu
cd "$(dirname "$0")"
PATH=$PATH:/usr/sbin:/sbin # where a plain `su` does not look

say() { printf '==> %s\n' "$*" >&2; }
die() {
    code=$1
    shift
    printf 'setup: %s\n' "$*" >&2
    exit "$code"
}

[ "$(id -u)" = 0 ] || die 77 "needs root, for packages, network namespaces and XDP. Try again as root."
[ -r /etc/os-release ] && . /etc/os-release
if [ "${ID:-}" != debian ] || [ "${VERSION_ID:-0}" -lt 12 ]; then
    die 1 "made for Debian 12 or later, this is ${PRETTY_NAME:-an unknown system}. CONTRIBUTING.md says what it would install."
fi
exec 9<requirements.lock
flock 9 # two of us at once would build one .venv twice

# --- Debian packages: asked for by the command that each one brings -------------------------------------------------------

missing=
wants() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
wants python3 python3
wants ip iproute2
wants ping iputils-ping
wants ethtool ethtool
wants curl curl
wants nginx nginx-light
wants dnsmasq dnsmasq-base
wants dig bind9-dnsutils
wants iperf3 iperf3
wants traceroute traceroute
wants tcpdump tcpdump
wants bird bird2 # the switches of the laboratory
wants make make
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
if [ "${1:-}" = tests ]; then # what the benches are held against: testpmd, the kernel's masquerade, rte_hash, which is built
    wants dpdk-testpmd dpdk-dev
    wants nft nftables
    wants gcc gcc
    [ -x /usr/lib/frr/bgpd ] || missing="$missing frr" # the pessimistic switch
    wants etcd etcd-server # the optional store of the map
    wants pkg-config pkg-config
    wants sshd openssh-server # a copy by scp goes on while its shard moves
    wants turnserver coturn # STUN, and who finds out by it what kind of NAT is before him
    wants stun stun-client
    wants nmap nmap
    wants natpmpc natpmpc # a client of NAT-PMP; libtorrent has one of PCP
    /usr/bin/python3 -c 'import libtorrent' 2>/dev/null || missing="$missing python3-libtorrent"
    wants tracepath iputils-tracepath
    pkg-config --exists libdpdk 2>/dev/null || missing="$missing libdpdk-dev"
fi

log=$(mktemp)
policy=
finish() { rm -f "$log" $policy; }
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

logged() { "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; die 1 "this failed: $*"; }; }

if [ -n "$missing" ]; then
    say "Debian packages:$missing"
    # nginx is wanted as a program of the lab, not as a server of this machine.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    logged apt-get -o DPkg::Lock::Timeout=120 -qq update
    # shellcheck disable=SC2086 # a list of words
    logged apt-get -o DPkg::Lock::Timeout=120 -qq install -y --no-install-recommends $missing
    case $missing in
    *nginx*) [ ! -d /run/systemd/system ] || systemctl -q disable nginx || true ;;
    esac
    case $missing in
    *openssh-server*) [ ! -d /run/systemd/system ] || systemctl -q disable ssh || true ;;
    esac
    for name in bird2:bird frr:frr etcd-server:etcd coturn:coturn; do # nor as routers or servers of this machine
        case $missing in
        *"${name%:*}"*) [ ! -d /run/systemd/system ] || systemctl -q disable "${name#*:}" || true ;;
        esac
    done
    [ -z "$policy" ] || rm -f $policy
fi

# --- .venv: rebuilt when the interpreter, the lock, the packaging or its place has changed ---------------------------------

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die 1 "needs Python 3.11 or later, $(command -v python3) is $(python3 -V)"
stamp=$({
    python3 -c 'import os, sys; print(sys.version, os.path.realpath(sys.executable))'
    pwd
    cat requirements.lock setup.cfg pyproject.toml
} | sha256sum)
if [ "$stamp" != "$(cat .venv/made-from 2>/dev/null)" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    say "Python packages into .venv, as locked and hashed in requirements.lock"
    rm -rf .venv
    logged python3 -m venv .venv
    [ -t 2 ] && bar=1 || bar=0
    count=$(grep -c '^[a-z0-9._-]*==' requirements.lock)
    .venv/bin/python -m pip --disable-pip-version-check install --progress-bar off --require-hashes -r requirements.lock 2>&1 |
        tee "$log" | awk -v count="$count" -v bar="$bar" '
            function told(text) { if (bar) printf "\r    %-60s", text > "/dev/stderr" }
            /^(Collecting|Processing)/ { told(sprintf("%2d of %d  %.40s", ++n, count, $2)) }
            /^Installing/ { told("installing") }
            END { if (bar) print "" > "/dev/stderr" }'
    grep -q '^Successfully installed' "$log" || { tail -n 30 "$log" >&2; die 1 "pip could not install what requirements.lock names"; }
    logged .venv/bin/python -m pip --disable-pip-version-check install --no-build-isolation --no-deps --editable .
    printf '%s' "$stamp" >.venv/made-from
fi

# --- compiled code ---------------------------------------------------------------------------------------------------------

.venv/bin/krononat compile
