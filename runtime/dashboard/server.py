"""Serves the dashboard of a run, or of a folder of runs, on a port until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import uvicorn

from verst.runtime.dashboard.app import make_app
from verst.runtime.dashboard.runs import Runs
from verst.runtime.run.folder import RunFolder


class Server:
    """A dashboard with a port and a token. `run` serves it."""

    def __init__(self, folder: RunFolder | Path, host: str = "127.0.0.1", port: int = 0) -> None:
        """Binds the port; 0 takes a free one. `folder` is a run or a folder of runs.

        Raises OSError if it is taken, or the address is not this machine's."""
        self.token = secrets.token_urlsafe(32)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(64)
        except OSError:
            self._socket.close()
            raise
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            make_app(Runs.of(folder.root if isinstance(folder, RunFolder) else folder), self.token),
            log_level="warning",
            access_log=False,  # it would contain the token
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """The address to open, with the token."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{host}:{self.port}/?token={self.token}"

    def run(self) -> None:
        """Serves until SIGINT, SIGTERM or a call of `stop`."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Ends `run`. May be called from any thread."""
        self._server.should_exit = True
