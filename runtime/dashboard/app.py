"""The HTTP API of the dashboard and the page's files: which request goes where."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from importlib.resources import files

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from verst.runtime.dashboard.answers import Answers
from verst.runtime.dashboard.guard import Guard
from verst.runtime.dashboard.requests import Refused, as_json
from verst.runtime.dashboard.runs import Runs
from verst.runtime.metrics.glossary import KINDS as GLOSSARY
from verst.runtime.metrics.glossary import words

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_KEPT = 12  # runs whose data are kept in memory: those that were asked for last
_COMPARED = 8  # runs in one chart
# Requests about one run: `?run=NAME`, by default the one that the dashboard was started for.
_OF_A_RUN: dict[str, Callable[[Answers, Request], Response]] = {
    "poll": Answers.poll,
    "recipe": Answers.recipe,
    "plan": Answers.plan,
    "process": Answers.process,
    "nodes": Answers.nodes,
    "lives": Answers.lives,
    "stack": Answers.stack,
    "logs": Answers.logs,
    "log": Answers.log,
    "samples": Answers.samples,
    "sample": Answers.sample,
    "evals": Answers.evals,
    "curve": Answers.curve,
}


def make_app(runs: Runs, token: str) -> ASGIApp:
    """Makes the dashboard of a folder of runs, as an ASGI application that only `token` opens."""
    kept = _Kept(runs)
    routes = [
        Route(f"/api/{name}", kept.answering(answer), methods=["GET"]) for name, answer in _OF_A_RUN.items()
    ]
    routes += [
        Route("/api/stack", kept.answering(Answers.ask_stack), methods=["POST"]),
        Route("/api/runs", kept.runs, methods=["GET"]),
        Route("/api/differences", kept.differences, methods=["GET"]),
        Route("/api/glossary", _glossary, methods=["GET"]),
    ]
    pages = page_files()

    def page(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in pages:
            raise Refused(404, f"there is no file {name}")
        content, kind = pages[name]
        return Response(content, media_type=kind)

    routes += [Route("/", page, methods=["GET"]), Route("/static/{name:path}", page, methods=["GET"])]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(GZipMiddleware, minimum_size=2000, compresslevel=4)],
        exception_handlers={Refused: _refused, OSError: _unreadable},
    )
    return Guard(app, token)


def page_files() -> dict[str, tuple[bytes, str]]:
    """The page's files by name, with their media types. No other file is ever served."""
    found: dict[str, tuple[bytes, str]] = {}
    root = files("verst.runtime.dashboard") / "static"
    for prefix, folder in (("", root), ("vendor/", root / "vendor")):
        for entry in folder.iterdir():
            kind = _TYPES.get(entry.name.rpartition(".")[2])
            if kind is not None and entry.is_file():
                found[prefix + entry.name] = (entry.read_bytes(), kind)
    return found


class _Kept:
    """The answers about each run, made when the run is first asked for."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._answers: OrderedDict[str, Answers] = OrderedDict()
        self._lock = threading.Lock()

    def answering(self, answer: Callable[[Answers, Request], Response]) -> Callable[[Request], Response]:
        """A route that lets the run's own `Answers` answer."""
        return lambda request: answer(self._of(request), request)

    def runs(self, request: Request) -> Response:
        """Returns a line for each run of the folder, which one the dashboard was started for, and which is first.

        With `?brief=1` the lines are left out.
        """
        with self._lock:
            lines = [] if "brief" in request.query_params else self._runs.lines()
            return as_json(
                {
                    "root": str(self._runs.root),
                    "chosen": self._runs.chosen,
                    "first": self._runs.first(),
                    "runs": lines,
                }
            )

    def differences(self, request: Request) -> Response:
        """Returns the keys in which the recipes of `?run=A&run=B` differ, with each run's value."""
        names = request.query_params.getlist("run")[:_COMPARED]
        return as_json({"differences": self._runs.differences(names)})

    def _of(self, request: Request) -> Answers:
        with self._lock:
            name = request.query_params.get("run") or self._runs.first()
            if name is None:
                raise Refused(404, f"there are no runs in {self._runs.root}")
            if name not in self._answers:
                folder = self._runs.folder(name)
                if folder is None:
                    raise Refused(404, f"there is no run {name!r} in {self._runs.root}")
                self._answers[name] = Answers(folder)
                if len(self._answers) > _KEPT:
                    self._answers.popitem(last=False)
            self._answers.move_to_end(name)
            return self._answers[name]


def _glossary(request: Request) -> Response:
    """Returns what each figure means: by kind of line a list of [key, words], in the glossary's order."""
    return as_json({kind: [[f.key, words(f)] for f in figures] for kind, figures in GLOSSARY.items()})


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return PlainTextResponse(f"{error}\n", status_code=error.status)


def _unreadable(request: Request, error: Exception) -> Response:
    """Answers when the folder was moved or its file system fails. The page shows the reason and tries again."""
    return PlainTextResponse(f"the run folder cannot be read: {error}\n", status_code=503)
