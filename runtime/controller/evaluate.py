"""The controller of an evaluation without training: it gives held-out prompts to the engines and writes the figures.

The engines serve the model folder of the recipe, which is version 0, and no weights are sent. `verst eval` starts it in
the place of the controller; its node agent runs `python -m verst.runtime.controller.evaluate --run DIR --index 0`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

import msgspec

from verst.runtime.actors import ActorError, Member
from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.eval_prompts import EvalPrompts
from verst.runtime.controller.reporting.measure import RolloutMeasure
from verst.runtime.controller.reporting.shown import ShownFiles
from verst.runtime.controller.service import Mailboxes, Service
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.lone_evaluation import LoneEvaluation
from verst.runtime.data.tokenizer import load_tokenizer
from verst.runtime.node.member_process import MemberProcess, say
from verst.runtime.run.ending import HOPELESS
from verst.runtime.run.folder import RunFolder, write_atomically

log = logging.getLogger(__name__)
_WATCH_S = 1.0
_MISSES = 3


async def main(process: MemberProcess) -> None:
    """Evaluates, and writes `eval.json` and the answers that people may read."""
    folder = process.folder
    try:
        finish = await _run(process)
    except (ActorError, OSError, ValueError) as error:
        finish = ev.Finish(ok=False, reason=str(error), hopeless=isinstance(error, ValueError))
    folder.event("finished" if finish.ok else "failed", message=finish.reason)
    if not finish.ok:
        say(f"the evaluation failed: {finish.reason}")
        sys.exit(HOPELESS if finish.hopeless else 1)


async def _run(process: MemberProcess) -> ev.Finish:
    folder = process.folder
    config = ControllerConfig.read(folder)
    tokenizer = load_tokenizer(config.model.path)
    prompts = EvalPrompts(config, tokenizer)
    events: asyncio.Queue[ev.Event] = asyncio.Queue()
    mail = Mailboxes()
    service = Service(events.put_nowait, mail, RolloutMeasure())
    member = await process.join("controller", service)
    state = LoneEvaluation(prompts.sets, config.rollout.concurrency)
    watching = asyncio.create_task(_watch(member, service, events))
    deadline = time.monotonic() + config.rollout.wait_for_engines_s
    results: dict[str, Any] = {}
    try:
        while True:
            # Engines that are busy may say nothing for long. One that is gone is an event (`_watch`).
            limit = None if state.fleet.engines else max(0.0, deadline - time.monotonic())
            try:
                event = await asyncio.wait_for(events.get(), limit)
            except TimeoutError:
                waited = config.rollout.wait_for_engines_s
                return ev.Finish(False, f"no engine for {waited:g} s (rollout.wait_for_engines_s)")
            for command in state.handle(event):
                match command:
                    case ev.SendPrompts(engine, ids, _, version):
                        mail.deliver(engine, [prompts.job(id, version) for id in ids])
                    case ev.ReportEval():
                        results[command.set] = _report(folder, prompts, command)
                    case ev.EvalEnded():
                        _write(folder, config, prompts, service, tokenizer, results)
                    case ev.Finish():
                        return command
            if state.fleet.engines:
                deadline = time.monotonic() + config.rollout.wait_for_engines_s
            if isinstance(event, ev.EvalScored):
                done, of = state.evals.progress
                if done % max(1, of // 50) == 0:
                    folder.metric(kind="eval_progress", step=0, done=done, of=of)
    finally:
        watching.cancel()


def _report(folder: RunFolder, prompts: EvalPrompts, report: ev.ReportEval) -> dict[str, Any]:
    """Writes a set's line of metrics.jsonl. Returns its figures."""
    figures = {
        **report.figures,
        "samples": report.prompts * prompts.configs[report.set].samples_per_prompt,
        "prompts": report.prompts,
        "left_out": prompts.left_out[report.set],
    }
    folder.metric(kind="eval", set=report.set, step=0, when=report.when, **figures)
    return figures


def _write(
    folder: RunFolder,
    config: ControllerConfig,
    prompts: EvalPrompts,
    service: Service,
    tokenizer: Any,
    results: dict[str, Any],
) -> None:
    """Writes eval.json, and the answers for people to read."""
    shown = ShownFiles(
        folder.shown, config.metrics, tokenizer, lambda id, _: prompts.job(id, 0).prompt, prompts.place
    )
    shown.write_answers(0, "alone", service.take_answers(0))
    sets = {name: results[name] for name in prompts.configs}
    content = msgspec.json.encode({"model": config.model.path, "sets": sets})
    write_atomically(folder.root / "eval.json", msgspec.json.format(content) + b"\n")


async def _watch(member: Member, service: Service, events: asyncio.Queue[ev.Event]) -> None:
    """Reports engines whose worker is gone. One that comes back reports itself."""
    misses: dict[str, int] = {}
    while True:
        present = {info.incarnation for info in member.members("rollout")}
        for engine, incarnation in list(service.engines.items()):
            misses[incarnation] = 0 if incarnation in present else misses.get(incarnation, 0) + 1
            if misses[incarnation] == _MISSES:
                del service.engines[engine]
                events.put_nowait(ev.EngineLost(engine, "its worker is gone"))
        await asyncio.sleep(_WATCH_S)


if __name__ == "__main__":
    MemberProcess.run(main)
