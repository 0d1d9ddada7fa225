#!/bin/sh
# The fast tests, in three processes of pytest side by side: scripts/test.sh [PYTEST ARGUMENT...]
#
# On two cores this takes little more than half the time of one process. Tests that share engines or the server that
# Megatron's processes are forked from, which take long to start, are in one part, and the parts take about the same
# time. Tests on Slurm wait most of their time, so others follow them. Those of the dashboard are among these: Slurm's
# tests make network interfaces, and Chromium then drops what it is loading. The parts in the background write to
# build/, which is printed at the end.
set -u
cd "$(dirname "$0")/.."
mkdir -p build
slurm="tests/cluster tests/runtime/dashboard tests/launcher"
trainer="tests/runtime/trainer tests/sync tests/runtime/actors tests/runtime/node"
pytest() { .venv/bin/python -P -m pytest -m "not long" "$@"; }

# shellcheck disable=SC2086
pytest "$@" $slurm > build/test-slurm.txt 2>&1 & on_slurm=$!
# shellcheck disable=SC2086
pytest "$@" $trainer > build/test-trainer.txt 2>&1 & of_trainer=$!
trap 'kill $on_slurm $of_trainer 2>/dev/null' INT TERM
ignored=""
for folder in $slurm $trainer; do ignored="$ignored --ignore=$folder"; done
# shellcheck disable=SC2086
pytest "$@" $ignored tests; others=$?
wait $of_trainer; trainer_code=$?
echo "$trainer:"; cat build/test-trainer.txt
wait $on_slurm; slurm_code=$?
echo "$slurm:"; cat build/test-slurm.txt
exit $((others ? others : trainer_code ? trainer_code : slurm_code))
