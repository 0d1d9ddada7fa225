#!/bin/sh
# The fast tests, in four lanes side by side: scripts/test.sh [PYTEST ARGUMENT...]
#
# On two cores this takes little more than half the time of one process. Tests that share engines or the server that
# Megatron's processes are forked from, which take long to start, are in one lane, and the lanes take about the same
# time. Those of Slurm wait most of their time, and so do those of the dashboard. Slurm's tests make network interfaces,
# and Chromium then drops what it is loading: the dashboard's have a network of their own, where that is allowed. The
# lanes in the background write to build/, which is printed at the end.
set -u
cd "$(dirname "$0")/.."
mkdir -p build
pytest() { .venv/bin/python -P -m pytest -m "not long" "$@"; }
alone() {
  if unshare --net true 2>/dev/null; then
    unshare --net sh -c 'ip link set lo up && exec "$@"' alone .venv/bin/python -P -m pytest -m "not long" "$@"
  else
    pytest "$@"
  fi
}

(pytest "$@" tests/cluster tests/runtime/actors tests/runtime/node) > build/test-slurm.txt 2>&1 & slurm=$!
(pytest "$@" tests/runtime/trainer tests/sync) > build/test-trainer.txt 2>&1 & trainer=$!
(alone "$@" tests/runtime/dashboard; code=$?; pytest "$@" tests/launcher && exit $code) \
  > build/test-launcher.txt 2>&1 & launcher=$!
trap 'kill $slurm $trainer $launcher 2>/dev/null' INT TERM
ignored=""
for folder in cluster runtime/actors runtime/node runtime/trainer sync runtime/dashboard launcher; do
  ignored="$ignored --ignore=tests/$folder"
done
# shellcheck disable=SC2086
pytest "$@" $ignored tests; failed=$?
for lane in slurm trainer launcher; do
  eval "wait \$$lane"; code=$?
  echo "tests of the lane of $lane:"; cat "build/test-$lane.txt"
  [ $code -eq 0 ] || failed=$code
done
exit $failed
