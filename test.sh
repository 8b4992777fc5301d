#!/bin/sh
# Everything that has to hold, in the order in which it is cheapest to hear of a mistake.
set -eu
cd "$(dirname "$0")"
./setup.sh tests
say() { printf '==> %s\n' "$*" >&2; }
bin=.venv/bin

# Types are read by one CPU: what is compiled with bounds checks begins on the other; what came of it is asked for below.
NUMBA_BOUNDSCHECK=1 $bin/krononat compile >/dev/null 2>&1 &
compiling=$!
trap 'kill "$compiling" 2>/dev/null || :' EXIT

say "ruff"
$bin/ruff check .
say "mypy --strict"
$bin/mypy
# Two at a time where a test has nothing but itself: what makes namespaces comes later, what heeds the clock of others alone.
say "pure Python, without the laboratory"
NUMBA_DISABLE_JIT=1 $bin/pytest -q -n 2 --dist worksteal -m "not lab and not alone"
say "compiled with bounds checks: scenarios and fuzz"
wait "$compiling" || : # where it failed it says why now:
trap - EXIT
NUMBA_BOUNDSCHECK=1 $bin/krononat compile # two processes share it; tests would wait for each other instead
NUMBA_BOUNDSCHECK=1 $bin/pytest -q -n 2 --dist worksteal -m "not lab and not alone" tests/test_scenarios.py tests/test_fuzz.py
say "compiled, two at a time"
$bin/pytest -q -n 2 --dist worksteal -m "not lab and not alone" --fuzz 3000 # with bounds checks 30,000 frames were fuzzed above
say "compiled, in the laboratory: two files at a time, each in namespaces of its own, and mostly waiting"
$bin/pytest -q -n 2 --dist loadfile -m "lab and company and not long"
say "compiled, alone: in the laboratory, or by the clock"
$bin/pytest -q -m "(lab or alone) and not company and not long"
say "what is benched under pytest, once each"
$bin/pytest -q bench --benchmark-disable
