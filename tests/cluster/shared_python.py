"""This Python for another user: the interpreter may lie in a home that is closed to others."""

from __future__ import annotations

import shutil
import site
import sys
import sysconfig
from pathlib import Path


def share_python(folder: Path) -> tuple[str, dict[str, str]]:
    """Copies the interpreter and its standard library to `folder` (some 60 MB) and makes a venv of our packages there.

    Returns the venv's Python and what its environment needs.
    """
    base, name = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    copy = folder / "base"
    (copy / "bin").mkdir(parents=True)
    shutil.copy2(Path(sys.executable).resolve(), copy / "bin" / name)
    unneeded = shutil.ignore_patterns(
        "site-packages", "test", "tests", "idlelib", "tkinter", "__pycache__", "config-*"
    )
    shutil.copytree(sysconfig.get_path("stdlib"), copy / "lib" / name, ignore=unneeded)
    for library in (base / "lib").glob(f"lib{name}*.so*"):
        shutil.copy2(library, copy / "lib")
    venv = folder / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "lib" / name).mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text(f"home = {copy / 'bin'}\n")
    (venv / "bin/python").symlink_to(copy / "bin" / name)
    (venv / "lib" / name / "site-packages").symlink_to(site.getsitepackages()[0])
    return str(venv / "bin/python"), {"LD_LIBRARY_PATH": str(copy / "lib")}
