"""A user without a name gets one, which torch and others ask for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMELESS = """
import argparse, getpass, gettext, os, shutil, subprocess, sys  # which the other user may not be able to read
os.setgid(54321); os.setuid(54321)
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
sys.argv = ["verst", "--help"]
"""
ASK = """
import getpass, subprocess
print("name:", getpass.getuser(), subprocess.run(["sh", "-c", "echo $USER"], capture_output=True, text=True).stdout)
"""
# The command, the program of a Slurm task and a node agent: what they start inherits the name.
STARTS = {
    "verst": "from verst.launcher.cli import main",
    "job": "from verst.launcher.slurm.job import main",
    "agent": "from verst.runtime.node.agent.__main__ import main",
}


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("which", STARTS)
def test_whatever_is_started_knows_a_name(which: str) -> None:
    program = f"{STARTS[which]}{NAMELESS}\ntry: main()\nexcept SystemExit: pass\n{ASK}"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "name: uid-54321 uid-54321" in done.stdout
