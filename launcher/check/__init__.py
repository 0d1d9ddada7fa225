"""The check of a recipe: every fault that the schema cannot see, found before anything starts.

`check.py` runs all checks and collects their faults. Each other file has the faults of one subject: `data.py`
(prompt files), `hooks.py`, `placement.py` (GPUs and CPUs), `engine.py` (an engine's parallel sizes),
`metrics.py`, `weights.py` (weight transports), `step.py` (batch, staleness and lengths) and `routing.py`
(routing replay). `arguments.py` starts `parsers.py` in processes of its own for the checks that import torch:
Megatron's and SGLang's parsers, and `engine_format.py`. `hooks.py` starts `hook_import.py`, which imports the
recipe's hooks.
"""
