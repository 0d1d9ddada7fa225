"""Decides which engine gets which prompts: as many as it has room for and the bound on staleness allows.

A prompt may have more samples than an engine ever has room for. It goes to an idle engine (`Settings.room_for`).
"""

from __future__ import annotations

from collections.abc import Callable

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.evaluations import Evaluations
from verst.runtime.controller.state_machine.fleet import Fleet
from verst.runtime.controller.state_machine.groups import Groups


def send_evaluation(fleet: Fleet, evals: Evaluations, room_for: Callable[[int], int]) -> list[ev.SendPrompts]:
    """Gives evaluation prompts to engines that keep the weights under evaluation.

    `room_for`: the room that an engine needs to get a prompt of so many samples.
    """
    commands: list[ev.SendPrompts] = []
    while evals.waiting:
        number = fleet.next_evaluator(room_for(evals.samples_of_next()), evals.version)
        if number is None:
            break
        ids, samples = evals.take(fleet.engines[number].room)
        fleet.give(number, ids, samples, evaluation=True)
        commands.append(ev.SendPrompts(number, tuple(ids), evaluation=True, version=evals.version))
    return commands


def send_groups(fleet: Fleet, groups: Groups, samples: int, room: int, version: int) -> list[ev.SendPrompts]:
    """Gives training prompts, of `samples` samples each, to engines while the trainer is at `version`.

    `room`: what an engine needs to get a prompt.
    An engine gets prompts only while its weights are recent enough for another group (`Groups.allowance`).
    """

    def allowance(held: int) -> int:
        return groups.allowance(version - held)

    commands: list[ev.SendPrompts] = []
    while True:
        number = fleet.next_asker(room, lambda held: held >= 0 and allowance(held) > 0)
        if number is None:
            return commands
        engine = fleet.engines[number]
        count = min(max(1, engine.room // samples), allowance(engine.version))
        ids = [groups.issue() for _ in range(count)]
        fleet.give(number, ids, samples, evaluation=False)
        commands.append(ev.SendPrompts(number, tuple(ids), evaluation=False))
