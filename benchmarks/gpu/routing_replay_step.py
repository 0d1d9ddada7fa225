"""What replay adds to a training step: steps with and without it in turns, on one trainer in one process.

Both replay nothing but what the model chose by itself, so that the experts have the same work. Without replay the
trainer's parts are those that it would have been built with, and Megatron's routers have nobody to ask.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gpu.interleaved import interleaved
from benchmarks.gpu.shapes import write_model
from benchmarks.gpu.trainer_speed import build, machine, make_samples, own_routing, timed_step
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, SampleRef
from verst.runtime.trainer.share.routing import cut_all
from verst.runtime.trainer.trainer import Trainer

WARM = 3  # steps of each kind, before
PHASES = ("forward_backward", "optimizer")


def measure(options: Any, note: Callable[[dict[str, Any]], None]) -> None:
    """Gives `note` the figures after each round."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder), options.shape, options.layers, options.device)
        trainer = build(model, options.implementation, replay=True, device=options.device)
    samples = make_samples(options.tokens, trainer.model.hf_config["vocab_size"])
    try:
        routings = [own_routing(trainer, sample) for sample in samples]
        samples = [msgspec.structs.replace(s, routing=r) for s, r in zip(samples, routings, strict=True)]
        cut = cut_seconds(trainer, samples)
        switch = Switch(trainer)
        phases: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        metrics: dict[str, float] = {}

        def step(on: bool) -> float:
            switch.turn(on)
            seconds, seen = timed_step(trainer, samples, len(phases[True]) + len(phases[False]))
            phases[on].append(seconds)
            metrics.update({k: v for k, v in seen.items() if k.startswith("routing_")} if on else {})
            return seconds["step"]

        for on in [False, True] * WARM:
            step(on)
        phases[True].clear()
        phases[False].clear()
        about = {
            "layers": options.layers,
            "shape": options.shape,
            "implementation": options.implementation,
            "tokens_per_sequence": options.tokens,
            "sequences": len(samples),
            "parameters": trainer.model.parameter_count,
            "cut_seconds": cut,
            **machine(),
        }

        def noted(found: dict[str, Any]) -> None:
            medians = {
                name: {phase: statistics.median(one[phase] for one in phases[on]) for phase in PHASES}
                for name, on in (("off", False), ("on", True))
            }
            note(
                {
                    **about,
                    "metrics_of_a_step": metrics,
                    "median_phase_seconds": medians,
                    "step_seconds": found,
                }
            )

        arms = {"off": lambda: step(False), "on": lambda: step(True)}
        interleaved(arms, options.rounds, options.seconds, noted)
    finally:
        trainer.close()


class Switch:
    """Takes a trainer's replay out and puts it in again."""

    def __init__(self, trainer: Trainer) -> None:
        """`trainer` was built with replay."""
        self._trainer = trainer
        self._on = self._parts()
        trainer.algorithm = trainer.algorithm.model_copy(update={"routing_replay": "off"})
        trainer._prepare_steps(None)
        self._off = self._parts()
        modules = [module for chunk in trainer.model.chunks for module in chunk.modules()]
        self._routers: list[tuple[Any, Any]] = [
            (module, module.router_replay) for module in modules if hasattr(module, "router_replay")
        ]
        assert self._routers, "the model has no router to replay"

    def _parts(self) -> dict[str, Any]:
        names = ("replay", "algorithm", "_microbatches", "models", "_scoring")
        return {name: getattr(self._trainer, name) for name in names}

    def turn(self, on: bool) -> None:
        """The coming steps are with replay, or without."""
        for name, part in (self._on if on else self._off).items():
            setattr(self._trainer, name, part)
        for router, ours in self._routers:
            router.router_replay = ours if on else None


def cut_seconds(trainer: Trainer, samples: list[Sample]) -> float:
    """What cutting one rank's share out of the samples takes on its data-parallel replica's first rank, which does it
    before the step, on the host."""
    replay = trainer.replay
    assert replay is not None
    cuts = [MicroBatch([SampleRef(0, s.index, 0, s.length, 0.0, [])]) for s in samples]
    by_name = {(s.group, s.index): s for s in samples}
    times = []
    for _ in range(10):
        began = time.perf_counter()
        cut_all(replay.share, cuts, by_name, replay.entry)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
