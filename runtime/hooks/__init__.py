"""Holds the functions of a user, such as rewards and filters, that a recipe names.

`hook.py` is the wrapper of every hook: it loads the dotted path (`dotted.py`), calls plain and async functions with a
deadline, checks the value (`values.py`) and raises `HookError` with hook, place and value (`errors.py`, `frames.py`).
`signatures.py` has the type of each hook. `pool.py` runs a hook in processes that can be killed (`pool_process.py`,
`process.py`), within `limits.py` and after its `preparation.py`.
"""
