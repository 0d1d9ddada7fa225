"""The HTTP API of the page: news of the run, the plan, logs and kept samples. Every answer is small and bounded."""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from verst.runtime.dashboard.folder_state import KINDS, PAGE, FolderState
from verst.runtime.dashboard.guard import Guard
from verst.runtime.dashboard.log_files import BadPattern, log_paths, read_news, read_tail, search
from verst.runtime.dashboard.shown import KINDS as SHOWN
from verst.runtime.dashboard.shown import list_samples, read_sample, shown_steps
from verst.runtime.run.folder import RunFolder

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Refused(Exception):
    """A request that cannot be answered. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def make_app(folder: RunFolder, token: str) -> ASGIApp:
    """Makes the dashboard of one run, as an ASGI application that only `token` opens."""
    answers = Answers(folder)
    pages = page_files()

    def page(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in pages:
            raise Refused(404, f"there is no file {name}")
        content, kind = pages[name]
        return Response(content, media_type=kind)

    api = {
        "poll": answers.poll,
        "recipe": answers.recipe,
        "plan": answers.plan,
        "process": answers.process,
        "logs": answers.logs,
        "log": answers.log,
        "samples": answers.samples,
        "sample": answers.sample,
    }
    routes = [Route(f"/api/{name}", answer, methods=["GET"]) for name, answer in api.items()]
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


class Answers:
    """The requests of the API. Starlette calls these methods in threads."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._state = FolderState(folder)
        self._lock = threading.Lock()

    def poll(self, request: Request) -> Response:
        """Returns the news since the positions that the page names: `?epoch=…&step=40&event=7&processes=3`."""
        with self._lock:
            state = self._state
            state.update()
            known = request.query_params.get("epoch") == state.epoch
            since = {k: _number(request, k, 0) if known else 0 for k in (*KINDS, "event")}
            answer: dict[str, Any] = {
                "epoch": state.epoch,
                "run": state.head(),
                "series": {kind: state.series[kind].page(since[kind], PAGE) for kind in KINDS},
                "events": state.page_of_events(since["event"]),
            }
            if not known or _number(request, "processes", -1) != state.processes.version:
                answer["processes"] = state.processes.table()
        return _json(answer)

    def recipe(self, request: Request) -> Response:
        """Returns the resolved recipe, as the file in the run folder has it."""
        return PlainTextResponse(self._folder.recipe.read_text(encoding="utf-8"))

    def plan(self, request: Request) -> Response:
        """Returns which processes run where, without their commands."""
        plan = self._read_plan()
        groups = {
            group: [[[p.name, p.gpus, p.on_exit, p.max_restarts] for p in node.processes] for node in nodes]
            for group, nodes in (plan.groups if plan else {}).items()
        }
        return _json({"groups": groups, "host": plan.host if plan else None})

    def process(self, request: Request) -> Response:
        """Returns one process of the plan, with its command and environment."""
        name, plan = request.query_params.get("name", ""), self._read_plan()
        for nodes in (plan.groups if plan else {}).values():
            for node in nodes:
                for process in node.processes:
                    if process.name == name:
                        return _json(process)
        raise Refused(404, f"the plan has no process {name!r}")

    def _read_plan(self) -> Any:
        with self._lock:
            self._state.update()
            return self._state.processes.plan()

    def logs(self, request: Request) -> Response:
        """Returns all logs with their sizes in bytes."""
        paths = log_paths(self._folder)
        return _json({"files": [[name, path.lstat().st_size] for name, path in paths.items()]})

    def log(self, request: Request) -> Response:
        """Returns lines of one log: the end, those before or after a position, or those that match a pattern."""
        name, grep = request.query_params.get("file", ""), request.query_params.get("grep", "")
        path = log_paths(self._folder).get(name)
        if path is None:
            raise Refused(404, f"there is no log {name!r}")
        before = _number(request, "before", -1)
        end = None if before < 0 else before
        if grep:
            try:
                return _json(search(path, grep, end))
            except BadPattern as error:
                raise Refused(400, str(error)) from error
        since = _number(request, "since", -1)
        if since < 0:
            return _json(read_tail(path, end))
        return _json(read_news(path, since, _number(request, "inode", 0)))

    def samples(self, request: Request) -> Response:
        """Returns the steps with kept samples, and the list of one step's samples, by default the last step's.

        With `kind=eval` these are the evaluated versions, and the held-out answers of one of them.
        """
        steps = shown_steps(self._folder, _one_of(request, "kind", SHOWN))
        step = _number(request, "step", max(steps, default=-1))
        if steps and step not in steps:
            raise Refused(404, f"no samples were kept of step {step}")
        return _json(
            {"steps": list(steps), "step": step, "samples": list_samples(steps[step]) if steps else []}
        )

    def sample(self, request: Request) -> Response:
        """Returns one kept sample with its tokens."""
        path = shown_steps(self._folder, _one_of(request, "kind", SHOWN)).get(_number(request, "step", -1))
        found = None if path is None else read_sample(path, _number(request, "line", -1))
        if found is None:
            raise Refused(404, "there is no kept sample with this step and line")
        return _json(found)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise Refused(400, f"{name} must be a number, not {text!r}") from None


def _one_of(request: Request, name: str, choices: tuple[str, ...]) -> str:
    """The parameter's value, by default the first choice."""
    given = request.query_params.get(name, choices[0])
    if given not in choices:
        raise Refused(400, f"{name} must be one of {', '.join(choices)}, not {given!r}")
    return given


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return PlainTextResponse(f"{error}\n", status_code=error.status)


def _unreadable(request: Request, error: Exception) -> Response:
    """Answers when the folder was moved or its file system fails. The page shows the reason and tries again."""
    return PlainTextResponse(f"the run folder cannot be read: {error}\n", status_code=503)
