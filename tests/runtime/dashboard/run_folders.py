"""Run folders as the controller, the agents and the members write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from verst.runtime.actors.directory import MemberInfo
from verst.runtime.node.gpu_use import ROLE, GpuUse, NodeUse, use_path
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Plan, Process

BEGAN = 1_795_000_000.0


def make_folder(root: Path, ranks: int = 1, engines: int = 1, steps: int = 4) -> RunFolder:
    """A run that has been launched: recipe, plan, life 0, a member file for each process."""
    folder = RunFolder(root)
    folder.create()
    folder.recipe.write_text(
        f"name: quick\nalgorithm:\n  steps: {steps}\n  mode: sync\ncheckpoint: {{best: {{set: held_out}}}}\n"
    )
    trainer = [process("controller", 0), process("store", 0), *(process("trainer", i) for i in range(ranks))]
    rollout = [Node(processes=[process("rollout", i)]) for i in range(engines)]
    Plan(name="quick", groups={"trainer": [Node(processes=trainer)], "rollout": rollout}).write(folder.plan)
    folder.start_generation()
    for planned in [*trainer, *(node.processes[0] for node in rollout)]:
        join(folder, planned.role, planned.index)
    return folder


def process(role: str, index: int) -> Process:
    """As the planner writes it."""
    argv = ["python", "-m", f"verst.runtime.{role}", "--index", str(index)]
    return Process(role=role, index=index, argv=argv, env={"OMP_NUM_THREADS": "1"}, on_exit="restart")


def join(folder: RunFolder, role: str, index: int, generation: int = 0) -> Path:
    """Writes a member's file, as at its start."""
    info = MemberInfo(
        role=role,
        index=index,
        generation=generation,
        incarnation=f"{role}{index}",
        host="10.0.0.1",
        port=4000 + index,
        pid=100 + index,
    )
    path = folder.members / f"{info.name}.json"
    path.write_bytes(msgspec.json.encode(info))
    return path


def step(number: int, **changes: Any) -> dict[str, Any]:
    """A line of metrics.jsonl, with the fields that the controller writes. Steps count from 1."""
    before = number - 1
    return {
        "time": BEGAN + number,
        "kind": "step",
        "step": number,
        "version": number,
        "reward": 0.25 + 0.5 * (before % 7) / 7,
        "solved_groups": 0.3,
        "groups_all_right": 0.1,
        "groups_all_wrong": 0.2,
        "reward_spread": 0.4,
        "rewards": {"min": 0.0, "p10": 0.0, "median": 0.5, "p90": 1.0, "max": 1.0},
        "reward_histogram": {"from": [0.0, 0.5, 1.0], "to": [0.0, 0.5, 1.0], "count": [5, 10, number]},
        "response_length": 31.5 + before % 5,
        "truncated": 0.0,
        "staleness": before % 2,
        "loss": 0.0123456789 * (-1) ** before,
        "grad_norm": 1.5 + (before % 11) / 10,
        "lr": 1e-6,
        "kl_rollout_k3": 1.234e-5,
        "logprob_max_diff": 0.0321,
        "entropy": 0.75,
        "ratio": 1.0001,
        "clip_fraction": 0.002,
        "tokens": 4096,
        "tokens_per_s": 8123.4,
        "rollout_tokens_per_s": 912.3,
        "routing_replayed": 4096.0,
        "routing_would_differ": 0.011,
        "routing_tokens_differ": 0.08,
        "routing_free": 64.0,
        "routing_probe_kl_free": 2e-3,
        "routing_probe_kl_replayed": 1e-3,
        "selection_replayed": 8192.0,
        "selection_wrong": 0.0,
        "selection_would_differ": 0.034,
        "selection_tokens_differ": 0.6,
        "seconds": {
            "step": 10.0,
            "rollout": 6.0,
            "train": 3.0,
            "weight_sync": 0.5,
            "train/forward_backward": 2.0,
            "train/optimizer": 0.9,
        },
    } | changes


def append(path: Path, *records: dict[str, Any]) -> None:
    """Lines, whole ones."""
    with path.open("a") as stream:
        stream.writelines(json.dumps(record, separators=(",", ":")) + "\n" for record in records)


def give_gpus(folder: RunFolder, used: int, total: int, busy: float) -> None:
    """The first trainer rank has a GPU, which has been measured."""
    plan = Plan.read(folder.plan)
    processes = [
        msgspec.structs.replace(p, gpus=[0]) if p.name == "trainer-0" else p
        for p in plan.groups["trainer"][0].processes
    ]
    meter = Process(role=ROLE, index=0, argv=[], gpus=[0], on_exit="ignored")
    groups = plan.groups | {"trainer": [Node(processes=[*processes, meter])]}
    msgspec.structs.replace(plan, groups=groups).write(folder.plan)
    path = use_path(folder, "trainer", 0)
    path.parent.mkdir(exist_ok=True)
    gpus = [GpuUse(name="0", used=used, total=total, busy=busy)]
    path.write_bytes(msgspec.json.encode(NodeUse(gpus=gpus)))


def sample(number: int, index: int, **changes: Any) -> dict[str, Any]:
    """A line of shown/step-*.jsonl."""
    return {
        "step": number,
        "group": 3,
        "index": index,
        "prompt": "What is 3 + 4?",
        "response": "It is 7",
        "tokens": ["It", " is", " 7"],
        "rollout_logprobs": [-0.1, -0.2, -1.5],
        "trainer_logprobs": [-0.1, -0.25, -1.0],
        "advantage": 0.7 if index == 0 else -0.7,
        "reward": 1.0 if index == 0 else 0.0,
        "routing_differs": [0, 1, 0],
    } | changes


def keep_samples(folder: RunFolder, number: int, *records: dict[str, Any], kind: str = "step") -> Path:
    """Writes a step's file of kept samples."""
    shown = folder.root / "shown"
    shown.mkdir(exist_ok=True)
    path = shown / f"{kind}-{number:06d}.jsonl"
    append(path, *records)
    return path


def write_log(folder: RunFolder, name: str, text: str) -> Path:
    """`name`: "life-0/trainer/0/trainer-0.log"."""
    path = folder.logs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
