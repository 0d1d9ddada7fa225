#!/bin/sh
# The fast tests, in three lanes side by side: scripts/test.sh [PYTEST ARGUMENT...]. With -m long, the long ones.
#
# On two cores this takes little more than half the time of one process; a fourth lane makes it slower. Tests that share
# engines or the server that Megatron's processes are forked from, which take long to start, are in one lane, and the
# lanes take about the same time. Tests of Slurm and of the dashboard wait most of their time. Slurm's make network
# interfaces, and Chromium then drops what it is loading: they follow each other. The lanes in the background write to
# build/, which is printed at the end.
set -u
cd "$(dirname "$0")/.."
mkdir -p build
waiting="tests/cluster tests/runtime/dashboard tests/runtime/actors tests/launcher/local tests/launcher/watch"
worlds="tests/runtime/trainer tests/sync tests/runs tests/launcher/runs tests/launcher/plan
  tests/launcher/recipe tests/launcher/slurm tests/launcher/actors"
pytest() { .venv/bin/python -P -m pytest -m "not long" "$@"; }

# shellcheck disable=SC2086
pytest "$@" $waiting > build/test-waiting.txt 2>&1 & of_waiting=$!
# shellcheck disable=SC2086
pytest "$@" $worlds > build/test-worlds.txt 2>&1 & of_worlds=$!
trap 'kill $of_waiting $of_worlds 2>/dev/null' INT TERM
ignored=""
for folder in $waiting $worlds; do ignored="$ignored --ignore=$folder"; done
# shellcheck disable=SC2086
pytest "$@" $ignored tests; others=$?
wait $of_worlds; worlds_code=$?
echo "$worlds:"; cat build/test-worlds.txt
wait $of_waiting; waiting_code=$?
echo "$waiting:"; cat build/test-waiting.txt
exit $((others ? others : worlds_code ? worlds_code : waiting_code))
