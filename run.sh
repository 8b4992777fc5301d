#!/bin/sh
# The demonstration: sets up what it needs, then a laboratory of network namespaces with real traffic through one core.
# Exit status 0 only if everything held; the proof is in report/.
set -eu
cd "$(dirname "$0")"
./setup.sh
exec .venv/bin/krononat lab demo --report report "$@"
