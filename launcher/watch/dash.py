"""Implements `verst dash`: serves the dashboard of a run or of a folder of runs."""

from __future__ import annotations

import socket
from pathlib import Path

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import open_run

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def is_folder_of_runs(path: Path) -> bool:
    """Whether this is no run folder itself, but has run folders in it."""
    return not (path / "recipe.yaml").is_file() and next(path.glob("*/recipe.yaml"), None) is not None


def serve_dashboard(run_dir: Path, host: str, port: int) -> int:
    """Serves the dashboard until Ctrl-C. Returns the exit code. Raises UserError when the port cannot be used."""
    from verst.runtime.dashboard.server import Server

    root = run_dir.absolute() if is_folder_of_runs(run_dir) else open_run(run_dir).root
    try:
        server = Server(root, host, port)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port}: {error.strerror}; --port 0 takes any free port"
        ) from error
    print(f"{root.name}: {server.url}")
    if host in _LOOPBACK:
        here = socket.gethostname()
        print(
            f"to open it on another machine, run there first: ssh -N -L {server.port}:{host}:{server.port} {here}"
        )
    else:
        print("this is not a loopback address: the pages and the access token cross the network unencrypted")
    print("Ctrl-C stops the dashboard, not the run", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:  # uvicorn has closed everything and raised the signal again
        print()
    return 0
