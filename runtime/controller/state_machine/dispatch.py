"""Decides which engine gets which prompts: as many as it has room for and the bound on staleness allows."""

from __future__ import annotations

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.evaluations import Evaluations
from verst.runtime.controller.state_machine.fleet import Fleet
from verst.runtime.controller.state_machine.groups import Groups


def send_evaluation(fleet: Fleet, evals: Evaluations, samples: int, version: int) -> list[ev.SendPrompts]:
    """Gives evaluation prompts, of `samples` samples each, to engines that hold the weights `version`."""
    commands: list[ev.SendPrompts] = []
    while evals.waiting:
        number = fleet.next_asker(samples, lambda held: held == version)
        if number is None:
            break
        ids = evals.take(fleet.engines[number].room // samples)
        fleet.give(number, ids, samples, evaluation=True)
        commands.append(ev.SendPrompts(number, tuple(ids), evaluation=True))
    return commands


def send_groups(fleet: Fleet, groups: Groups, samples: int, version: int) -> list[ev.SendPrompts]:
    """Gives training prompts, of `samples` samples each, to engines while the trainer is at `version`.

    An engine gets prompts only while its weights are recent enough for another group (`Groups.allowance`).
    """

    def allowance(held: int) -> int:
        return groups.allowance(version - held)

    commands: list[ev.SendPrompts] = []
    while True:
        number = fleet.next_asker(samples, lambda held: held >= 0 and allowance(held) > 0)
        if number is None:
            return commands
        engine = fleet.engines[number]
        count = min(engine.room // samples, allowance(engine.version))
        ids = [groups.issue() for _ in range(count)]
        fleet.give(number, ids, samples, evaluation=False)
        commands.append(ev.SendPrompts(number, tuple(ids), evaluation=False))
