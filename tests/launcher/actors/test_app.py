"""What an app file promises: every fault named with its place, and the actors dealt to the nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from verst.launcher.actors.app import AppConfig, load_app, make_plan
from verst.launcher.recipe.faults import RecipeError
from verst.runtime.run.plan import Pin

GOOD = """
name: app
main: tests.runs.actors_for_tests:main
nodes: 2
actors:
  ledger: {actor: tests.runs.actors_for_tests:Ledger}
  worker: {actor: tests.runs.actors_for_tests:Worker, count: 3, gpus: 2, threads: 4, after: [ledger], max_restarts: 7}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> AppConfig:
    path = tmp_path / "app.yaml"
    path.write_text(text)
    return load_app(path, list(overrides))


def test_actors_are_dealt_to_the_nodes_with_their_gpus(tmp_path: Path) -> None:
    app = load(tmp_path, GOOD)
    on_cluster = make_plan(app, "python", "/here", "ib0", None)
    names = [[process.name for process in node.processes] for node in on_cluster.groups["actors"]]
    assert names == [["main-0", "ledger-0", "worker-1"], ["worker-0", "worker-2"]]
    assert [p.gpus for p in on_cluster.groups["actors"][1].processes] == [[0, 1], [2, 3]]
    worker = on_cluster.groups["actors"][0].processes[2]
    assert (worker.on_exit, worker.max_restarts, worker.env["OMP_NUM_THREADS"]) == ("restart", 7, "4")
    here = make_plan(
        load(tmp_path, GOOD, "nodes=1"), "python", "", "127.0.0.1", ("4", "5", "6", "7", "8", "9")
    )
    devices = [p.env["CUDA_VISIBLE_DEVICES"] for p in here.groups["actors"][0].processes]
    assert devices == ["", "", "4,5", "6,7", "8,9"]
    assert here.one_machine
    assert not on_cluster.one_machine


def test_actors_have_cpus_of_their_own_unless_the_app_wants_none(tmp_path: Path) -> None:
    app = load(tmp_path, GOOD, "nodes=1", "actors.worker.cpus=3")
    pins = [p.pin for p in make_plan(app, "python", "", "ib0", None).groups["actors"][0].processes]
    assert pins == [None, Pin(), Pin(cpus=3), Pin(cpus=3), Pin(cpus=3)]
    free = make_plan(load(tmp_path, GOOD, "affinity=none"), "python", "", "ib0", None)
    assert {p.pin for node in free.groups["actors"] for p in node.processes} == {None}


def test_what_the_end_of_an_actor_means_and_which_are_forks(tmp_path: Path) -> None:
    changes = (
        "actors.ledger.restart=always",
        "actors.worker.restart=never",
        "nodes=1",
        "actors.worker.gpus=0",
    )
    plan = make_plan(load(tmp_path, GOOD, *changes), "python", "", "127.0.0.1", ())
    seen = {p.role: (p.on_exit, p.forks) for p in plan.groups["actors"][0].processes}
    assert seen == {
        "main": ("ends_run", False),
        "ledger": ("restart_always", True),
        "worker": ("fails_run", False),  # it has more than one thread
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("actors.worker.count=0", r"command line: actors\.worker\.count: .*greater than or equal to 1"),
        ("actors.worker.restart=always", r"actors\.worker\.max_restarts: has no effect with restart always"),
        ("actors.worker.colour=red", r"actors\.worker\.colour: Extra inputs are not permitted"),
        ("actors.worker.after=[leger]", r"actors\.worker\.after: there is no actor 'leger'.*ledger"),
        (
            "actors.ledger.after=[worker]",
            r"actors: the `after` of these actors form a circle: ledger -> worker -> ledger",
        ),
        ("actors.worker.actor=tests.runs.actors_for_tests:Workr", r"did you mean Worker"),
        ("actors.worker.actor=builtins:int", r"builtins:int must be a subclass of Actor"),
        (
            "actors.main={actor: tests.runs.actors_for_tests:Worker}",
            r"the main function's process has that name",
        ),
        (
            "actors.Worker={actor: tests.runs.actors_for_tests:Worker}",
            r"role 'Worker': use lower-case letters",
        ),
        ("main=nowhere.at.all:main", r"main: main 'nowhere.at.all:main': there is no module 'nowhere'"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(tmp_path, GOOD, change)
