"""A torchx component: `torchx run -s local_cwd launcher/local/component.py:verst --recipe recipes/quickstart.yaml`.

This is for those who start everything through torchx. `verst run` does the same, shows the run, and prints
why it failed. (No `from __future__ import annotations` here: torchx reads the types.)
"""

from pathlib import Path

import torchx.specs as specs

from verst.launcher.check.check import examine
from verst.launcher.local.app import make_app
from verst.launcher.plan.machine import this_machine
from verst.launcher.runs.prepare import prepare_run


def verst(recipe: str, *overrides: str) -> specs.AppDef:
    """Trains a language model by reinforcement learning, with a trainer and a rollout group on this machine.

    Args:
        recipe: the YAML file of the run
        overrides: dotted overrides of the recipe, e.g. algorithm.steps=10
    """
    machine = this_machine()
    folder, plan = prepare_run(examine(Path(recipe), overrides, machine), machine)
    folder.start_generation()
    return make_app(folder, plan)
