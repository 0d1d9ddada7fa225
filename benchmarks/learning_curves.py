"""Does each named algorithm make a tiny model learn? One engine and one process of trainers for all of them, on a CPU.

    python benchmarks/learning_curves.py --out benchmarks/results/learning_curves.json [--algorithms GRPO GSPO]
        [--seeds 1 2 3] [--steps 20] [--limit 3000]

The keys of each algorithm are those of docs/algorithms.md. A dense model of half a million parameters first imitates
demonstrations of the toy task (reverse three digits), once. From there each algorithm trains it for some steps with
each seed, in mode sync: SGLang generates, Megatron trains, and the weights of each step go through a folder. To start
both once for all, this script is the loop: it calls the engine, the advantage functions, the step's plan and the
trainer as the controller does. The reward is the share of digits at their place.

`--stale N` sends the weights to the engine only every N steps: see `stale()`.

The figures are written after each curve. No curve begins after `--limit` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import functools
import gc
import importlib.metadata
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from verst.runtime.algorithms import advantages
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.batch_plan import Part, plan_step
from verst.runtime.controller.imitation import good_answers
from verst.runtime.hooks.dotted import load_function
from verst.runtime.messages.jobs import Prompt
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Group, Sample
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.generate import Conversation, GenerateCall
from verst.runtime.trainer.config import TrainerConfig
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.trainer import Trainer
from verst.sync.hf.folder import read_config
from verst.sync.links.engine_format import EngineFormat
from verst.sync.links.gather import whole_tensors
from verst.sync.links.whole_share import WholeShare
from verst.sync.versions.sender import VersionSender

ROOT = Path(__file__).parents[1]
DIGITS = 3
PROMPTS, SAMPLES, NEW_TOKENS = 8, 8, 5
SFT_STEPS, SFT_ROWS = 30, 64
LEARNT = 0.1  # the mean reward of the last five steps is at least so much above that of the first step
LONGEST = 32


def named_algorithms() -> dict[str, dict[str, Any]]:
    """The `algorithm` section of each part of docs/algorithms.md that has one, by its heading; the first of each."""
    text = (ROOT / "docs/algorithms.md").read_text()
    found = {}
    for part in text.split("\n## ")[1:]:
        if snippet := re.search(r"```yaml\n(.*?)```", part, re.DOTALL):
            found[part.partition("\n")[0].partition(":")[0]] = yaml.safe_load(snippet[1])["algorithm"]
    return found


def tiny_dense(folder: Path) -> Path:
    """Writes a random Llama: 2 layers, hidden size 128, with a character tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from verst.runtime.data.models import character_tokenizer

    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=64, max_position_embeddings=256, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    ).float()  # fmt: skip
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


class Task:
    """The prompts of the toy task, and its reward."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        numbers = list(range(10**DIGITS))
        random.Random(0).shuffle(numbers)
        self.problems = [f"{n:0{DIGITS}d}" for n in numbers]

    def prompt(self, problem: str) -> list[int]:
        """Token ids of "reverse 402="."""
        return self.tokenizer.encode(f"reverse {problem}=", add_special_tokens=False)

    def answer(self, problem: str) -> list[int]:
        """Token ids of the right answer with its end."""
        return [
            *self.tokenizer.encode(problem[::-1], add_special_tokens=False),
            self.tokenizer.eos_token_id,
        ]

    def reward(self, problem: str, ids: list[int]) -> float:
        """The share of digits at their place; nothing for an answer of another length."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if len(text) != DIGITS:
            return 0.0
        return sum(a == b for a, b in zip(text, problem[::-1], strict=True)) / DIGITS


class Trained:
    """A fresh trainer of one rank, from a model folder."""

    def __init__(self, model: Path, algorithm: AlgorithmConfig, scratch: Path, lr: float) -> None:
        self.algorithm = algorithm
        store = tempfile.mktemp(dir=scratch)
        self.parallel = Parallel(0, 1, dist.FileStore(store, 1), timeout_s=120)
        megatron = {"lr": lr, "optimizer": "adam", "weight-decay": 0.0, "clip-grad": 1.0}
        self.trainer = Trainer(
            ModelConfig(path=str(model), dtype="float32"),
            TrainerConfig(max_tokens_per_microbatch=4096, megatron=megatron),
            algorithm,
            self.parallel,
            train_steps=algorithm.steps,
        )
        shapes = whole_tensors(self.trainer.model.bound.layout)
        grouped = EngineFormat(read_config(str(model)), shapes).grouped(shapes)
        self._share = WholeShare(self.trainer.model.bound, grouped, 1 << 28, torch.float32)

    def step(self, version: int, parts: list[Part], groups: list[Group]) -> Any:
        """One optimiser step on these groups."""
        plan = plan_step(
            step=version, parts=parts, dp_size=1, max_tokens=4096, pad_multiple=1,
            skip_zero_advantage=self.algorithm.skip_zero_advantage,
        )  # fmt: skip
        samples = {(s.group, s.index): s for group in groups for s in group.samples}
        return self.trainer.train(plan, samples)

    def publish(self, sender: VersionSender, version: int) -> None:
        """Writes the weights as a version in the sender's folder."""
        sender.send(version, self._share.buckets())

    def close(self) -> None:
        """Leaves the world, so that another trainer can start."""
        self.trainer.close()
        del self.trainer
        gc.collect()


class Curves:
    """The engine, the start that all algorithms share, and the numbers of weight versions."""

    def __init__(self, scratch: Path, model: Path, task: Task, engine: Engine) -> None:
        self.scratch, self.model, self.task, self.engine = scratch, model, task, engine
        # Versions count up over all curves, so that the engine never takes one for another.
        self.sender = VersionSender(scratch / "versions", keep=2)
        self.published = 0

    async def load(self, trained: Trained) -> None:
        """Brings the trainer's weights into the engine."""
        self.published += 1
        trained.publish(self.sender, self.published)
        await self.engine.pause("in_place")
        await self.engine.load_version(str(self.sender.root), self.published, None, 60)
        await self.engine.resume()

    async def groups(
        self, step: int, seed: int, version: int, temperature: float, samples: int
    ) -> list[Group]:
        """The prompt groups of a step, whose tokens count as those of weight version `version` of the curve."""
        draw = random.Random(f"{seed} {step}")
        problems = [draw.choice(self.task.problems) for _ in range(PROMPTS * SAMPLES // samples)]
        sampling = SamplingConfig(temperature=temperature, max_new_tokens=NEW_TOKENS)

        async def one(group: int, problem: str, index: int) -> Sample:
            ids = self.task.prompt(problem)
            call = GenerateCall(
                engine=self.engine, prompt=Prompt(ids=ids, text="", label=None, metadata={}), sampling=sampling,
                seed=draw.randrange(1 << 30), tokenizer=self.task.tokenizer, evaluation=False, group=group,
                index=index,
            )  # fmt: skip
            conversation = Conversation(call)
            await conversation.generate()
            response = conversation.response()
            response.weight_versions[:] = version
            score = self.task.reward(problem, response.ids.tolist())
            return response.sample(ids, group=group, index=index, reward=score, metadata={})

        made = []
        for number, problem in enumerate(problems):
            group = step * 1000 + number
            made.append([one(group, problem, index) for index in range(samples)])
        done = [await asyncio.gather(*answers) for answers in made]
        return [Group(id=samples_[0].group, samples=list(samples_)) for samples_ in done]

    async def curve(
        self, algorithm: AlgorithmConfig, seed: int, steps: int, lr: float, stale: int
    ) -> dict[str, Any]:
        """Trains from the shared start; returns rewards and a few figures by step."""
        trained = Trained(self.model, algorithm, self.scratch, lr)
        advantage = load_function(algorithm.advantage, "advantage function")
        began = time.monotonic()
        rows: dict[str, list[float]] = {
            "reward": [],
            "entropy": [],
            "grad_norm": [],
            "clip_fraction": [],
            "seconds": [],
        }
        oldest = 0
        try:
            for step in range(steps):
                at = time.monotonic()
                if step % stale == 0:
                    await self.load(trained)
                    oldest = step
                groups = await self.groups(step, seed, oldest, 1.0, algorithm.samples_per_prompt)
                metas = [group.meta(0) for group in groups]
                found = advantages.shaped(
                    advantage(metas, *advantages.options_of(algorithm)), metas, algorithm
                )
                policy = Part("policy", metas, found, algorithm.loss_average, longest=NEW_TOKENS)
                report = trained.step(step, [policy, *good_answers(metas, found, algorithm)], groups)
                rewards = [r for meta in metas for r in meta.rewards]
                rows["reward"].append(sum(rewards) / len(rewards))
                for name in ("entropy", "clip_fraction"):
                    rows[name].append(report.metrics.get(name, 0.0))
                rows["grad_norm"].append(report.grad_norm)
                rows["seconds"].append(time.monotonic() - at)
        finally:
            trained.close()
        return {"seed": seed, "wall_seconds": time.monotonic() - began, **rows}


def imitate(random_model: Path, task: Task, scratch: Path) -> Path:
    """The shared start: a model that has imitated a few demonstrations, as a Hugging Face folder."""
    import numpy as np
    from safetensors.torch import save_file

    algorithm = AlgorithmConfig(steps=SFT_STEPS, prompts_per_step=1, samples_per_prompt=2)
    trained = Trained(random_model, algorithm, scratch, 3e-3)
    draw = random.Random(1)
    for step in range(SFT_STEPS):
        groups = []
        for row in range(SFT_ROWS):
            problem = draw.choice(task.problems)
            answer = np.array(task.answer(problem), np.int32)
            zeros = np.zeros(len(answer), np.float32)
            sample = Sample(
                group=-1 - row, index=0, prompt_ids=np.array(task.prompt(problem), np.int32), response_ids=answer,
                logprobs=zeros, loss_mask=np.ones(len(answer), np.uint8),
                weight_versions=np.zeros(len(answer), np.int32), reward=0.0, finish="stop",
                signals={"temperature": zeros + 1},
            )  # fmt: skip
            groups.append(Group(id=-1 - row, samples=[sample]))
        metas = [group.meta(0) for group in groups]
        report = trained.step(step, [Part("sft", metas, [[1.0]] * SFT_ROWS, "token")], groups)
    print(f"imitated {SFT_STEPS} steps of {SFT_ROWS} demonstrations, loss {report.loss:.3f}", flush=True)
    start = scratch / "start"
    start.mkdir()
    for file in random_model.iterdir():
        if not file.name.startswith("model"):
            (start / file.name).write_bytes(file.read_bytes())
    tensors = {
        name: tensor.detach().clone().contiguous()
        for names, found in trained._share.buckets()
        for name, tensor in zip(names, found, strict=True)
    }
    save_file(tensors, start / "model.safetensors", {"format": "pt"})
    trained.close()
    return start


def learnt(rewards: list[float]) -> bool:
    """Whether the mean reward of the last five steps is above that of the first by the margin."""
    return sum(rewards[-5:]) / len(rewards[-5:]) >= rewards[0] + LEARNT


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """The figures so far, which a file may have from an earlier command."""
    if options.out.exists():
        return json.loads(options.out.read_text())
    return {"algorithms": {}}


def write(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Writes the figures with what they were measured on."""
    figures |= {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, no GPU; other work ran beside it",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("verst", "torch", "sglang", "megatron-core", "transformers")
        },
        "task": f"reverse {DIGITS} digits; reward: the share of digits at their place",
        "samples_per_step": PROMPTS * SAMPLES,
        "learnt_when": f"mean of the last five rewards >= first reward + {LEARNT}",
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1) + "\n")
    partial.replace(options.out)


async def main() -> None:
    """All curves that are not in the file yet. Exits with 1 if one did not learn."""
    options = arguments()
    until = time.monotonic() + options.limit
    figures = kept(options)
    with tempfile.TemporaryDirectory(prefix="verst-curves-") as folder:
        scratch = Path(folder)
        task = Task(tiny_dense(scratch / "random"))
        start = imitate(scratch / "random", task, scratch)
        config = RolloutConfig(reward="unused:here", concurrency=PROMPTS * SAMPLES, start_timeout_s=600)
        log = scratch / "engine.log"
        engine = await Engine.start(
            ModelConfig(path=str(start), dtype="float32"),
            config,
            log=log,
            routing=False,
            seed=1,
            device="cpu",
        )
        try:
            curves = Curves(scratch, start, task, engine)
            for seed in options.seeds:
                for name, section in chosen(options).items():
                    await one(options, figures, curves, name, section, seed, until)
        finally:
            await engine.stop()
    slow = [
        name for name, found in figures["algorithms"].items() if not all(c["learnt"] for c in found["curves"])
    ]
    if slow:
        sys.exit(f"did not learn with every seed: {', '.join(slow)}")


async def one(
    options: argparse.Namespace,
    figures: dict[str, Any],
    curves: Curves,
    name: str,
    section: dict[str, Any],
    seed: int,
    until: float,
) -> None:
    """One curve, unless the file has it or the time is over."""
    found = figures["algorithms"].setdefault(name, {"keys": section, "curves": []})
    if any(curve["seed"] == seed for curve in found["curves"]) or time.monotonic() > until:
        return
    sizes = {"steps": options.steps, "prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "seed": seed}
    keys = {key: value for key, value in section.items() if key != "mode"}
    algorithm = AlgorithmConfig.model_validate({**sizes, **keys})
    curve = await curves.curve(algorithm, seed, options.steps, options.lr, options.stale)
    curve |= {"lr": options.lr, "stale": options.stale, "learnt": learnt(curve["reward"])}
    found["curves"].append(curve)
    first, last = curve["reward"][0], sum(curve["reward"][-5:]) / 5
    print(
        f"{name}, seed {seed}: reward {first:.3f} -> {last:.3f} in {curve['wall_seconds']:.0f} s", flush=True
    )
    write(options, figures)


def chosen(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The algorithms that were asked for; by default all but those whose reward needs parts."""
    if options.stale > 1:
        return stale()
    named = named_algorithms()
    default = [name for name in named if name not in ("GDPO", "Old and stale answers")]
    return {name: named[name] for name in options.algorithms or default}


def stale() -> dict[str, dict[str, Any]]:
    """Old answers without a ratio, which is wrong for them, and with ways to make up for it."""
    reinforce = {
        "loss": "verst.runtime.algorithms.losses:reinforce",
        "advantage": "verst.runtime.algorithms.advantages:group_centred",
    }
    masked = "verst.runtime.algorithms.corrections:negative_masked"
    return {
        "stale, no correction": reinforce,
        "stale, OPSM": {**reinforce, "correction": masked, "correction_high": 1.05},
        "stale, clipped ratio": {
            "loss": "verst.runtime.algorithms.losses:grpo",
            "advantage": "verst.runtime.algorithms.advantages:group_centred",
        },
    }


@functools.cache
def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--algorithms", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--stale", type=int, default=1, help="steps between weight versions of the engine")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which no curve begins")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
