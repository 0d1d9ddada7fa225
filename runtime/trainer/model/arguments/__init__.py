"""Megatron's arguments for a recipe and a checkpoint.

Open `parse.py` first: `parse` makes the arguments and `check` lists every fault at plan time. `defaults.py`
holds the options that Verst sets itself, `architecture.py` names those that the model decides, `faults.py`
judges options one by one, `validation.py` judges them together, and `command_line.py` calls Megatron's own
parser.
"""

from verst.runtime.trainer.model.arguments.parse import ArgumentFaultsError, check, parse

__all__ = ["ArgumentFaultsError", "check", "parse"]
