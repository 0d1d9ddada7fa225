"""Faults of the user's functions that a recipe names.

`hooks.py` starts `hook_import.py`, a program that imports them, looks at their signatures (`signatures.py`) and calls
some once on made-up input (`dry_call.py`, `made_up_tokens.py`). `bundled.py` knows Verst's own functions. `reward.py`
is `verst check-reward`.
"""
