"""A trainer rank that runs one job after another, each in its own layout. Jobs come through a pipe.

Importing Megatron takes seconds, so the tests share one pair of these processes. Each job builds a Trainer,
runs it, answers and leaves the process groups again. On a machine with GPUs rank i uses GPU i.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from tests.runtime.trainer import own_hooks
from tests.runtime.trainer.tiny_models import (
    as_pairs,
    make_pair_plan,
    make_plan,
    make_samples,
    make_updates,
    with_margins,
    with_version,
    without,
)
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.stages import DpoStage, RewardModelStage
from verst.runtime.hooks.config import HooksConfig
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, StepPlan, StepReport
from verst.runtime.trainer.checkpoint.checkpoint import Checkpointer
from verst.runtime.trainer.config import CheckpointConfig, TrainerConfig
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.fetch import replica_group, spreaders, without_routing
from verst.runtime.trainer.step import response_values
from verst.runtime.trainer.trainer import Trainer
from verst.sync.hf.export import export


def run(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """Builds the job's trainer, computes log-probabilities, trains, and computes them again."""
    folder = Path(job["model"])
    world_size = job["world_size"]
    samples = make_samples(folder, folder.name if job["routing"] else None, job["unknown"], job["noise"])
    samples = as_pairs(samples) if job["loss"] in ("dpo", "reward_model") else samples
    samples = with_margins(samples) if job["loss"] == "reward_model" else samples
    parallel = Parallel(
        rank,
        world_size,
        dist.FileStore(job["store"], world_size),
        backend="nccl" if torch.cuda.is_available() else "gloo",
        timeout_s=60,
        local_rank=rank,
    )
    trainer = Trainer(
        ModelConfig(path=job["model"], dtype=job["dtype"]),
        TrainerConfig(megatron=job["megatron"], **job["trainer"]),
        algorithm_of(job, len(samples)),
        parallel,
        train_steps=8,
        hooks=HooksConfig(**job["hooks"]),
    )
    model = trainer.model
    own_hooks.TOLD.clear()
    try:
        answer: dict[str, Any] = {"parameters": model.parameter_count, "pad_multiple": model.pad_multiple}
        checkpointer = Checkpointer(trainer, CheckpointConfig())
        if job["load"]:
            checkpointer.load(Path(job["load"]))
        answer["before"] = logprobs(trainer, samples)
        answer |= train(job, trainer, samples)
        answer["told"] = list(own_hooks.TOLD)
        answer["values"] = values(trainer, samples)
        if job["save"]:
            checkpointer.save(Path(job["save"]), job["steps"], b"")
        if job["export"]:
            export(model.bound, 1 << 16, torch.float32, job["model"], job["export"])
        answer["after"] = logprobs(trainer, samples)
        masters = [t for group in model.optimizer.param_groups for t in group["params"]]
        answer["master_dtypes"] = sorted({str(t.dtype) for t in masters})
        answer["parameter_dtypes"] = sorted({str(p.dtype) for c in model.chunks for p in c.parameters()})
        answer["gate_gradients"] = gate_gradients(trainer)
        answer["gradient"] = torch.cat(model.gradients()).numpy() if job["gradient"] else None
        return answer
    finally:
        trainer.close()


def algorithm_of(job: dict[str, Any], samples: int) -> AlgorithmConfig:
    """The job's algorithm. Without a policy stage the keys of one are refused."""
    policy = {"steps": 8, "prompts_per_step": 1, "samples_per_prompt": samples}
    given = job["algorithm"] if job["loss"] == "reward_model" else {**policy, **job["algorithm"]}
    return AlgorithmConfig(**given)


def logprobs(trainer: Trainer, samples: list[Sample]) -> list[list[float]] | None:
    """Returns the log-probabilities of each response; None before the last pipeline stage."""
    found = trainer.logprobs(samples)
    return None if found is None else [x.tolist() for x in found]


def values(trainer: Trainer, samples: list[Sample]) -> list[list[float]] | None:
    """Returns the critic's values of each response; None without a critic and before the last pipeline stage."""
    if "critic" not in trainer.models:
        return None
    batches = trainer._microbatches.of_samples(samples, trainer.config.max_tokens_per_microbatch)
    found = trainer.models["critic"].pipeline.predict(batches)
    if not trainer.parallel.is_last_stage:
        return None
    return [x.tolist() for x in response_values.of_samples(samples, batches, found, trainer.parallel)]


def with_value_term(plan: StepPlan) -> StepPlan:
    """The plan with a critic's term, whose weights are those of the policy's."""
    microbatches = [
        [
            MicroBatch(
                [msgspec.structs.replace(ref, weights=[*ref.weights, ref.weights[0]]) for ref in cut.samples]
            )
            for cut in rank
        ]
        for rank in plan.microbatches
    ]
    return msgspec.structs.replace(plan, terms=[*plan.terms, "value"], microbatches=microbatches)


def train(job: dict[str, Any], trainer: Trainer, samples: list[Sample]) -> dict[str, Any]:
    """Trains the job's steps.

    Returns their reports, and how many bytes of the engine's choices this rank got.
    """
    parallel = trainer.parallel
    by_place = {(s.group, s.index): s for s in samples}
    source, replica = replica_group(parallel)
    spreader, selection = spreaders(parallel, source, replica, trainer.replayed)
    answer: dict[str, Any] = {"reports": []}
    for step in range(job["steps"]):
        if job["loss"] in ("dpo", "reward_model"):
            stage = trainer.algorithm.spans[0].stage
            assert isinstance(stage, DpoStage | RewardModelStage)
            plan = make_pair_plan(samples, parallel.dp_size, stage, step)
            answer.setdefault("evaluations", []).append(plain(trainer.evaluate(plan, by_place)))
        elif trainer.algorithm.mini_batches > 1:
            plan = make_updates(samples, parallel.dp_size, step, trainer.algorithm.epochs)
        else:
            plan = make_plan(samples, parallel.dp_size, job["loss"], step, job["split"])
        if job["on_policy"]:
            by_place = {k: with_version(s, step) for k, s in by_place.items()}
        if trainer.algorithm.critic is not None:
            plan = with_value_term(plan)
        plan = msgspec.structs.replace(plan, shown=[tuple(name) for name in job["shown"]])
        routing = selected = None
        if spreader is not None and trainer.replays_engine(plan):
            # As in `SampleFetcher`, only the source has whole routings.
            here = {k: s if parallel.rank == source else without_routing(s) for k, s in by_place.items()}
            routing = spreader.spread(plan.microbatches[parallel.dp_rank], here)
            answer["routing_bytes"] = sum(part.numel() for part in routing)
            if selection is not None:
                selected = selection.spread(plan.microbatches[parallel.dp_rank], here)
                answer["selected_bytes"] = sum(part.numel() for part in selected)
        if trainer.algorithm.kl_in == "reward" and trainer.algorithm.critic is None:
            scored = trainer.score(plan, by_place, routing, selected)
            answer.setdefault("penalties", []).append({p.index: p.penalty for p in scored})
        if trainer.algorithm.logprob_filter is not None:
            scored = trainer.score(plan, by_place, routing, selected)
            answer.setdefault("scores", []).append({s.index: msgspec.structs.asdict(s) for s in scored})
            plan = without(plan, samples, job["dropped"])
        try:
            answer["reports"].append(plain(trainer.train(plan, by_place, routing, selected)))
        except FloatingPointError as error:
            if not job["refuses"]:
                raise
            answer["refused"] = str(error)
        if job["aside"]:
            held = [trainer.hold(what) for what in ("weights", "nothing", "weights", "all")]
            answer["held"] = [msgspec.structs.asdict(report) for report in held]
    if job["loss"] == "reward_model":
        answer["last"] = plain(trainer.evaluate(plan, by_place))["metrics"]
    return answer


def plain(report: StepReport) -> dict[str, Any]:
    """Returns the report's fields, with arrays as lists."""
    fields = {f: getattr(report, f) for f in report.__struct_fields__}
    shown = [msgspec.structs.asdict(sample) for sample in report.shown]
    fields["shown"] = [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in s.items()} for s in shown
    ]
    return fields


def gate_gradients(trainer: Trainer) -> list[float]:
    """Returns the norm of the last step's gradient of each router on this rank."""
    gates = [p for c in trainer.model.chunks for n, p in c.named_parameters() if n.endswith("router.weight")]
    return [float(gate.main_grad.norm()) for gate in gates]


def serve(rank: int, jobs: Connection, log: Path) -> None:
    """Runs jobs until the other end of the pipe is closed. This process's output goes to `log`."""
    torch.set_num_threads(1)
    with log.open("a") as file:  # Megatron prints
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    while True:
        try:
            job = jobs.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(25, repeat=True)  # a rank that hangs prints where
        try:
            answer = run(job, rank)
        except Exception:  # sent to the test, which fails with it
            answer = {"error": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        # Each process group has threads that poll a hundred times a second until it is collected. Megatron's objects
        # refer to each other in circles: after fifty jobs a thousand such threads took a core.
        gc.collect()
        jobs.send(answer)
