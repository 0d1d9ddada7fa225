"""The check of a recipe: every fault that the schema cannot see, found before anything starts.

`check.py` runs all checks and collects their faults. Each other file has the faults of one subject: `data.py`
(prompt files), `hooks.py`, `placement.py` (GPUs and CPUs), `engine.py` (an engine's parallel sizes),
`metrics.py`, `weights.py` (weight transports), `step.py` (batch, staleness and lengths), `context.py` (the
engines' context), `sampling.py`, `checkpoints.py`, `places.py` (folders and ports), `model_files.py` and
`routing.py` (routing replay).

Checks that import much run in processes of their own (`child.py`): `arguments.py` starts `parsers.py`, which asks
Megatron's and SGLang's parsers and `engine_format.py`; `rows.py` starts `row_program.py`, which reads the rows with the
tokenizer; `kept_answers.py` keeps the answers of both; `hooks.py` starts `hook_import.py`, which imports the recipe's
hooks. `reward.py` is `verst check-reward`.
"""
