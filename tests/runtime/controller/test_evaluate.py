"""The controller of an evaluation without training gives every prompt to real workers and writes the figures."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import yaml

from tests.runtime.actors.conftest import within
from tests.runtime.rollout.test_worker import Idle
from tests.runtime.sample_factory import make_group
from verst.runtime.actors import Member
from verst.runtime.controller.evaluate import main
from verst.runtime.data.models import character_tokenizer
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.messages.sample import Group
from verst.runtime.node.member_process import MemberProcess
from verst.runtime.rollout.episodes import Times
from verst.runtime.rollout.worker import Worker
from verst.runtime.run.folder import RunFolder

WAIT_S = 2.0


class OfVersion0(Idle):
    """Episodes whose answers are of the weights that the engine started with."""

    async def group(self, engine: Any, job: PromptJob) -> tuple[Group, Times]:
        if job.set == "math":  # these prompts occupy both engines for longer than the run waits for engines
            await asyncio.sleep(1.5 * WAIT_S)
        group = make_group(job.id, job.samples)
        samples = [
            msgspec.structs.replace(s, weight_versions=s.weight_versions * 0, reward=float(s.index == 0))
            for s in group.samples
        ]
        return msgspec.structs.replace(group, samples=samples), Times(0.0, 0.0)


def recipe(folder: Path) -> dict[str, Any]:
    character_tokenizer().save_pretrained(folder / "model")
    (folder / "model/config.json").write_text("{}")
    rows = "".join(json.dumps({"prompt": str(n), "label": n}) + "\n" for n in range(5))
    (folder / "rows.jsonl").write_text(rows)
    plain = {"path": str(folder / "rows.jsonl"), "chat_template": False}
    return {
        "model": {"path": str(folder / "model")},
        "data": {
            "train": {"path": "unused.jsonl"},
            "eval": {
                "math": {**plain, "samples_per_prompt": 4, "temperature": 1.0, "k": [1, 2]},
                "code": {**plain, "max_prompt_tokens": 1},
            },
        },
        "algorithm": {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 1},
        "rollout": {"reward": "unused:here", "concurrency": 8, "wait_for_engines_s": WAIT_S},
        "trainer": {},
    }


def test_two_workers_answer_all_prompts_and_the_figures_are_written(
    folder: RunFolder, tmp_path: Path
) -> None:
    folder.recipe.write_text(yaml.safe_dump(recipe(tmp_path)))

    async def evaluate() -> None:
        evaluating = asyncio.create_task(main(MemberProcess(folder, 0, folder.generation, "127.0.0.1")))
        while not (folder.members / "controller-0.json").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        workers = [Worker(n, Idle(), OfVersion0(), stores=0, room=8) for n in (0, 1)]  # type: ignore[arg-type]
        members = [await Member.join(folder, "rollout", n, worker) for n, worker in enumerate(workers)]
        running = [asyncio.create_task(w.run(m)) for w, m in zip(workers, members, strict=True)]
        try:
            await evaluating
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await asyncio.gather(*(m.leave() for m in members))

    within(40, evaluate)
    result = json.loads((folder.root / "eval.json").read_text())
    assert result["model"] == str(tmp_path / "model")
    math, code = result["sets"]["math"], result["sets"]["code"]
    assert [math[name] for name in ("reward", "pass@1", "pass@2", "best@4")] == [0.25, 0.25, 0.5, 1.0]
    assert (math["samples"], math["prompts"]) == (20, 5)
    assert "reward_ci" not in math, "all prompts have the same value"
    assert (code["reward"], code["samples"]) == (1.0, 5)
    assert "pass@1" not in code
    shown = (folder.shown / "eval-000000.jsonl").read_text().splitlines()
    assert len(shown) == 5 * 4 + 5
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    whens = {line["when"] for line in [*lines, *map(json.loads, shown)] if "when" in line}
    assert whens == {"alone"}
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert events[-1]["kind"] == "finished"
