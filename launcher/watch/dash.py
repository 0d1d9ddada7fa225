"""`verst dash`: the dashboard of a run, from its folder alone."""

from __future__ import annotations

import socket
from pathlib import Path

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import open_run

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve_dashboard(run_dir: Path, host: str, port: int) -> int:
    """Serves until Ctrl-C."""
    from verst.runtime.dashboard import Server

    folder = open_run(run_dir)
    try:
        server = Server(folder, host, port)
    except OSError as error:
        raise UserError(f"{host} port {port}: {error.strerror}; --port 0 takes any that is free") from error
    print(f"{folder.root.name}: {server.url}")
    if host in _LOOPBACK:
        here = socket.gethostname()
        print(f"from your own machine first: ssh -N -L {server.port}:{host}:{server.port} {here}")
    else:
        print("this is no loopback address: what is shown, and the token, cross the network unencrypted")
    print("Ctrl-C ends it; the run does not notice", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:  # uvicorn has closed everything and passes the signal on
        print()
    return 0
