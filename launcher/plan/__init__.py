"""The plan of a run: which process runs where, with which devices, threads and command, before anything starts.

`plan.py` makes the plan and `show_plan.py` prints it. `machine.py` describes the machine or cluster to plan for,
`slurm_options.py` reads what the recipe requests of Slurm, `parallelism.py` computes ranks and grids, `memory.py`
estimates memory, `training.py` says what the run trains with, `show_places.py` finds CPUs, `model_source.py` finds or
downloads the model, and `new_recipe.py` writes a recipe to begin with.
"""
