#!/bin/sh
# The fast tests, in three processes of pytest side by side: scripts/test.sh [PYTEST ARGUMENT...]
#
# On two cores this takes little more than half the time of one process. Tests that share what takes long to start (an
# engine, trainer ranks, a process to fork from) are in one part. Those on Slurm wait most of their time, so others
# follow them. The parts in the background write to build/, which is printed at the end.
set -u
cd "$(dirname "$0")/.."
mkdir -p build
engines="tests/runtime/rollout tests/runs tests/launcher"
pytest() { .venv/bin/python -P -m pytest -m "not long" "$@"; }

pytest "$@" tests/cluster tests/sync > build/test-cluster.txt 2>&1 & cluster=$!
# shellcheck disable=SC2086
pytest "$@" $engines > build/test-engines.txt 2>&1 & engines_part=$!
trap 'kill $cluster $engines_part 2>/dev/null' INT TERM
ignored="--ignore=tests/cluster --ignore=tests/sync"
for folder in $engines; do ignored="$ignored --ignore=$folder"; done
# shellcheck disable=SC2086
pytest "$@" $ignored tests; others=$?
wait $engines_part; with_engines=$?
echo "$engines:"; cat build/test-engines.txt
wait $cluster; on_slurm=$?
echo "tests/cluster tests/sync:"; cat build/test-cluster.txt
exit $((others ? others : with_engines ? with_engines : on_slurm))
