"""Everything that a person runs: the `verst` command, and what it does before and around a run.

`cli.py` puts the command together from `commands/`. `recipe/` reads a recipe, `check/` finds its faults, and
`plan/` decides which process runs where. `runs/` prepares and opens run folders, `local/` starts a run on
this machine, and `slurm/` submits one. `watch/` shows a run. `models/` makes model folders, and `actors/`
runs apps of actors.
"""
