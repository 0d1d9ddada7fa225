"""Answers the page's requests about one run. Every answer is small and bounded."""

from __future__ import annotations

import threading
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from verst.runtime.dashboard import stacks
from verst.runtime.dashboard.folder_state import KINDS, PAGE, FolderState
from verst.runtime.dashboard.held_out import answers_by_step
from verst.runtime.dashboard.log_files import BadPattern, log_paths, read_news, read_tail, search
from verst.runtime.dashboard.nodes import Nodes
from verst.runtime.dashboard.processes import Row
from verst.runtime.dashboard.requests import Refused, as_json, number, one_of
from verst.runtime.dashboard.shown import KINDS as SHOWN
from verst.runtime.dashboard.shown import list_samples, read_sample, shown_steps
from verst.runtime.run.folder import RunFolder


class Answers:
    """The requests of the API about one run. Starlette calls these methods in threads."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._state = FolderState(folder)
        self._nodes = Nodes(folder)
        self._lock = threading.Lock()

    def poll(self, request: Request) -> Response:
        """Returns the news since the positions that the page names: `?epoch=…&step=40&event=7&processes=3`."""
        with self._lock:
            state = self._state
            state.update()
            known = request.query_params.get("epoch") == state.epoch
            since = {k: number(request, k, 0) if known else 0 for k in (*KINDS, "event")}
            answer: dict[str, Any] = {
                "epoch": state.epoch,
                "run": state.head(),
                "series": {kind: state.series[kind].page(since[kind], PAGE) for kind in KINDS},
                "events": state.page_of_events(since["event"]),
            }
            if not known or number(request, "processes", -1) != state.processes.version:
                answer["processes"] = state.processes.table()
        return as_json(answer)

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
        return as_json({"groups": groups, "host": plan.host if plan else None})

    def process(self, request: Request) -> Response:
        """Returns one process of the plan, with its command and environment."""
        name, plan = request.query_params.get("name", ""), self._read_plan()
        for nodes in (plan.groups if plan else {}).values():
            for node in nodes:
                for process in node.processes:
                    if process.name == name:
                        return as_json(process)
        raise Refused(404, f"the plan has no process {name!r}")

    def nodes(self, request: Request) -> Response:
        """Returns how busy and how full each node's machine is."""
        with self._lock:
            self._state.update()
            return as_json({"nodes": self._nodes.table(self._state.processes.plan())})

    def lives(self, request: Request) -> Response:
        """Returns the lives of the run: how each ended, what failed first, and what changed before it."""
        with self._lock:
            self._state.update()
            return as_json({"lives": self._state.life_table()})

    def stack(self, request: Request) -> Response:
        """Returns the last stack of a process that was asked for."""
        return as_json(stacks.read(self._folder, self._row(request).name))

    def ask_stack(self, request: Request) -> Response:
        """Asks the node's agent for the stack of a process. The answer comes with `stack`."""
        try:
            stacks.ask(self._folder, self._row(request))
        except stacks.CannotAsk as error:
            raise Refused(409, str(error)) from error
        return as_json({})

    def _row(self, request: Request) -> Row:
        """The process that the request names, of those in the table: no other name becomes a path."""
        name = request.query_params.get("name", "")
        with self._lock:
            self._state.update()
            for row in self._state.processes.rows:
                if row.name == name:
                    return row
        raise Refused(404, f"the run has no process {name!r}")

    def _read_plan(self) -> Any:
        with self._lock:
            self._state.update()
            return self._state.processes.plan()

    def logs(self, request: Request) -> Response:
        """Returns all logs with their sizes in bytes."""
        paths = log_paths(self._folder)
        return as_json({"files": [[name, path.lstat().st_size] for name, path in paths.items()]})

    def log(self, request: Request) -> Response:
        """Returns lines of one log: the end, those before or after a position, or those that match a pattern."""
        name, grep = request.query_params.get("file", ""), request.query_params.get("grep", "")
        path = log_paths(self._folder).get(name)
        if path is None:
            raise Refused(404, f"there is no log {name!r}")
        before = number(request, "before", -1)
        end = None if before < 0 else before
        if grep:
            try:
                return as_json(search(path, grep, end))
            except BadPattern as error:
                raise Refused(400, str(error)) from error
        since = number(request, "since", -1)
        if since < 0:
            return as_json(read_tail(path, end))
        return as_json(read_news(path, since, number(request, "inode", 0)))

    def samples(self, request: Request) -> Response:
        """Returns the steps with kept samples, and the list of one step's samples, by default the last step's.

        With `kind=eval` these are the evaluated versions, and the held-out answers of one of them.
        """
        steps = shown_steps(self._folder, one_of(request, "kind", SHOWN))
        step = number(request, "step", max(steps, default=-1))
        if steps and step not in steps:
            raise Refused(404, f"no samples were kept of step {step}")
        return as_json(
            {"steps": list(steps), "step": step, "samples": list_samples(steps[step]) if steps else []}
        )

    def sample(self, request: Request) -> Response:
        """Returns one kept sample with its tokens."""
        path = shown_steps(self._folder, one_of(request, "kind", SHOWN)).get(number(request, "step", -1))
        found = None if path is None else read_sample(path, number(request, "line", -1))
        if found is None:
            raise Refused(404, "there is no kept sample with this step and line")
        return as_json(found)

    def evals(self, request: Request) -> Response:
        """Returns the kept answers to one held-out prompt at every evaluated step: `?set=math&row=3`."""
        row = number(request, "row", -1)
        wanted = request.query_params.get("set")
        return as_json(answers_by_step(self._folder, wanted, None if row < 0 else row))

    def curve(self, request: Request) -> Response:
        """Returns one figure of all steps, or of all evaluations, for a chart of several runs.

        `figures` are the names of those that are numbers. `more`: the run is long and not read to its end yet.
        """
        kind = one_of(request, "kind", ("step", "eval"))
        wanted = request.query_params.get("figure", "reward")
        with self._lock:
            self._state.update()
            series = self._state.series[kind]
            names = series.names_of_numbers()
            steps, times, values = (series.column(name) for name in ("step", "time", wanted))
            more = self._state.behind > 1 << 20
        rows = {
            s: (t, v if isinstance(v, int | float) else None)
            for s, t, v in zip(steps, times, values, strict=True)
            if kind == "step" or v is not None  # a line of an evaluation has the figures of one set
        }
        made = sorted(step for step in rows if step is not None)  # a step that was made again counts once
        return as_json(
            {
                "figures": names,
                "step": made,
                "time": [rows[step][0] for step in made],
                "value": [rows[step][1] for step in made],
                "more": more,
            }
        )
