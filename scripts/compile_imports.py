"""Imports once what a run's processes import, so that Python keeps the compiled modules: `scripts/environment.sh` does.

A tenth of the installed files: compiling all of them takes minutes. What cannot be imported here is compiled when
it is first needed, as ever.
"""

from __future__ import annotations

import os
import subprocess
import sys

TRAINER = "import verst.runtime.trainer.rank"
ENGINE = """
import os, sys
from verst.runtime.rollout.engine.arguments import CPU_STUBS
import torch
if not torch.cuda.is_available():
    sys.path.insert(0, str(CPU_STUBS))
    from verst.runtime.rollout.inside_sglang import plugin
    plugin.register()
import sglang.srt.entrypoints.http_server
import verst.runtime.rollout.worker
"""
DEADLINE_S = 300


def main() -> None:
    """Both at the same time, on two cores."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for program in (TRAINER, ENGINE)
    ]
    for child in children:
        try:
            child.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            child.kill()


if __name__ == "__main__":
    main()
