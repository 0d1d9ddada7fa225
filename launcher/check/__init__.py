"""The check of a recipe: every fault that the schema cannot see, found before anything starts.

`check.py` runs all checks and collects their faults. Each other file here has the faults of one section or subject of
the recipe: `placement.py` (GPUs and CPUs), `engine.py` (an engine's parallel sizes), `weights.py` (weight transports),
`step.py` (batch, staleness and lengths), `places.py` (folders and ports), and so on. `hooks/` looks at the user's
functions, `rows/` at data files and the rows in them, `model/` at model folders and the arguments of Megatron and
SGLang. Checks that import much run in processes of their own: `asking/` starts them, and keeps their answers.
"""
