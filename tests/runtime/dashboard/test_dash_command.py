"""`verst dash` as a person starts it, and that what it serves is in the package."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from verst.launcher.cli import app
from verst.runtime import dashboard
from verst.runtime.dashboard.app import page_files


def test_it_prints_an_address_serves_it_and_ends_with_ctrl_c(folder):
    command = [sys.executable, "-P", "-m", "verst.launcher.cli", "dash", str(folder.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S+", lines[0])
        assert found, lines
        assert f"ssh -N -L {found[1]}:127.0.0.1:{found[1]} " in lines[1]
        answer = httpx.get(found[0], follow_redirects=True, trust_env=False)
        assert "<title>Verst</title>" in answer.text
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 0, rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


def test_a_folder_that_is_no_run(tmp_path):
    answer = CliRunner().invoke(app, ["dash", str(tmp_path)])
    assert answer.exit_code == 2
    assert "is not a run folder" in answer.stderr
    answer = CliRunner().invoke(app, ["dash", str(tmp_path / "none")])
    assert answer.exit_code == 2
    assert "does not exist" in answer.stderr


def test_a_port_that_is_taken(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        answer = CliRunner().invoke(app, ["dash", str(folder.root), "--port", str(other.getsockname()[1])])
    assert answer.exit_code == 2
    assert "Address already in use" in answer.stderr
    assert "--port 0" in answer.stderr


def test_a_wheel_has_every_file_of_the_page():
    root = Path(dashboard.__file__).resolve().parent
    project = tomllib.loads((root.parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert (root / "__init__.py").is_file()  # setup.py finds the package by it
    packed = {
        p
        for glob in project["package-data"]["verst.runtime.dashboard"]
        for p in root.glob(glob)
        if p.is_file()
    }
    assert packed == {p for p in (root / "static").rglob("*") if p.is_file()}
    served = page_files()
    for name in ("index.html", "app.js", "style.css", "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css"):
        assert served[name][0]


@pytest.mark.parametrize("name", ["index.html", *(n for n in page_files() if not n.startswith("vendor/"))])
def test_the_page_names_nothing_outside_itself(name):
    text = page_files()[name][0].decode().replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r'(?:src|href)="/', text)  # relative: it works behind a proxy's prefix too
