#!/bin/sh
# The demonstration: sets up what it needs, then two laboratories of network namespaces with real traffic: one core by itself,
# then a cluster of three servers whose cores speak BGP to BIRD, moved, drained, broken and mended.
# Exit status 0 only if everything held and every goal was met; the proof is in report/.
set -eu
cd "$(dirname "$0")"
./setup.sh
.venv/bin/krononat lab demo --report report "$@"
exec .venv/bin/krononat bench show --report report
