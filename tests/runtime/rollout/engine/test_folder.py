"""Versions from a folder promise: an engine holds the published version bit for bit, and else says why not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runtime.rollout import tiny_models
from tests.runtime.rollout.engine.test_families import assert_agrees, weights_of
from tests.runtime.rollout.in_flight import generate_through
from tests.runtime.rollout.weight_source import WeightSource
from verst.runtime.messages.weight_round import FolderVersion, Taken
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.weight_receiver import WeightReceiver
from verst.sync.versions.folder import folder_of, read_index
from verst.sync.versions.sender import VersionSender

Weights = dict[str, torch.Tensor]


class Folder:
    """A trainer that publishes, and the worker of one engine that loads."""

    def __init__(self, engine: Engine, root: Path, transport: str) -> None:
        self.engine, self.root, self.transport = engine, root, transport
        self.sender = VersionSender(root, keep=2, full_every=16 if transport == "delta" else 1)

    async def join(self) -> None:
        """As a worker that has just started: nothing is on its node yet."""
        self.receiver = WeightReceiver(self.engine)

    async def send(self, weights: Weights) -> Taken:
        version = self.engine.version + 1
        self.publish(weights, version)
        return await self.load(version)

    def publish(self, weights: Weights, version: int) -> None:
        self.sender.send(version, [(list(weights), list(weights.values()))])

    async def load(self, version: int) -> Taken:
        return await self.receiver.load_version(
            FolderVersion(
                root=str(self.root),
                version=version,
                copy_in="" if self.transport == "delta" else None,
                pause="in_place",
                go_on=True,
                timeout_s=60,
            )
        )


@pytest.fixture
def folder_of_engine(tmp_path: Path, run: Any) -> Any:
    made: list[Folder] = []

    def make(engine: Engine, transport: str) -> Folder:
        made.append(Folder(engine, tmp_path / "weights", transport))
        run(made[-1].join())
        return made[-1]

    yield make
    for folder in made:
        folder.receiver.close()


def stepped(old: Weights, seed: int) -> Weights:
    """Every 300th element one unit in the last place further, as a step at a small rate does."""
    new = {}
    for name, tensor in old.items():
        bits = tensor.clone().view(torch.int32)
        bits.view(-1)[seed::300] += 1
        new[name] = bits.view(torch.float32)
    return new


def assert_holds(engine: Engine, weights: Weights, run: Any, ranks: int = 1) -> None:
    whole = run(WeightSource.connect(engine, ranks))
    reports = run(whole.compare(weights, engine.version))
    run(whole.close())
    assert all(report.equal for report in reports), reports
    assert sum(report.tensors for report in reports) == len(weights)


@pytest.mark.parametrize(
    ("transport", "family"),
    [("disk", "qwen3_moe"), ("delta", "qwen3_moe"), pytest.param("disk", "qwen3", marks=pytest.mark.long)],
)
def test_versions_arrive_bit_for_bit_and_are_used(
    transport: str, family: str, engine_of: Any, run: Any, folder_of_engine: Any
) -> None:
    engine = engine_of(family)
    folder, first = folder_of_engine(engine, transport), weights_of(tiny_models.build(family))
    assert_agrees(engine, tiny_models.build(family), run, 1.0, seed=7)  # fills the prefix cache, too
    sent, loads = first, []
    for seed in (1, 2, 3):
        sent = stepped(sent, seed)
        loads.append(run(folder.send(sent)))
        assert_holds(engine, sent, run)
    # A worker that starts anew has nothing on its node, and gets the version that is there.
    folder.receiver.close()
    run(folder.join())
    late = run(folder.load(engine.version))
    assert_holds(engine, sent, run)
    run(folder.send(first))  # ends as it began
    assert_agrees(engine, tiny_models.build(family), run, 1.0, seed=7)
    size = sum(tensor.nbytes for tensor in first.values())
    assert (loads[0].fetch_bytes, late.fetch_bytes >= size) == (size, True)
    assert all(load.stopped > 0 < load.fetch for load in loads)
    if transport == "delta":
        assert max(load.fetch_bytes for load in loads[1:]) < 0.2 * size, "only what changed was read"
    else:
        assert (folder_of(folder.root, engine.version) / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize("transport", ["disk", "delta"])
def test_an_engine_that_cannot_read_a_version_keeps_its_own_and_says_why(
    transport: str, engine_of: Any, run: Any, folder_of_engine: Any
) -> None:
    engine, first = engine_of("qwen3_moe"), weights_of(tiny_models.build("qwen3_moe"))
    folder, before = folder_of_engine(engine, transport), engine.version
    run(folder.send(first))
    folder.publish(stepped(first, 1), before + 2)
    path = next(
        p for p in folder_of(folder.root, before + 2).iterdir() if p.suffix in (".deltas", ".safetensors")
    )
    sound = path.read_bytes()
    path.write_bytes(sound[:-9] + bytes(b ^ 1 for b in sound[-9:]))
    with pytest.raises(ValueError, match=rf"of version {before + 2} in .*{path.name}"):
        run(folder.load(before + 2))
    path.unlink()
    with pytest.raises(OSError, match=path.name):
        run(folder.load(before + 2))
    with pytest.raises(ValueError, match=f"no published version {before + 9}"):
        run(folder.load(before + 9))
    assert engine.version == before + 1
    assert_agrees(engine, tiny_models.build("qwen3_moe"), run, 1.0, seed=7)  # it was not paused
    path.write_bytes(sound)
    run(folder.load(before + 2))
    assert_holds(engine, stepped(first, 1), run)
    run(folder.send(first))


def test_damage_while_an_engine_loads_is_its_failure_with_the_files_name(
    engine_of: Any, run: Any, folder_of_engine: Any
) -> None:
    """The file changes after the worker has verified it: the engine's ranks verify what they load."""
    engine, first = engine_of("qwen3_moe"), weights_of(tiny_models.build("qwen3_moe"))
    folder, version = folder_of_engine(engine, "disk"), engine.version + 1
    folder.publish(first, version)
    entry = read_index(folder.root, version).tensors["model.norm.weight"]
    path = folder_of(folder.root, version) / entry.file
    sound = path.read_bytes()
    path.write_bytes(sound[:-9] + bytes(b ^ 1 for b in sound[-9:]))

    async def load() -> None:
        await engine.pause("in_place")
        await engine.load_version(str(folder.root), version, None, 60)

    with pytest.raises(EngineError, match=rf"of version {version} in .*{path.name}: damaged"):
        run(load())
    assert engine.version == version - 1, "of no version now: a worker ends here"
    path.write_bytes(sound)
    run(folder.load(version))
    assert_holds(engine, first, run)


@pytest.mark.parametrize("transport", [pytest.param("disk", marks=pytest.mark.long), "delta"])
def test_requests_in_flight_go_on_under_the_new_version(
    transport: str, engine_of: Any, run: Any, folder_of_engine: Any
) -> None:
    engine = engine_of("qwen3_moe")
    folder, weights = folder_of_engine(engine, transport), weights_of(tiny_models.build("qwen3_moe"))
    run(generate_through(engine, [partial(folder.send, weights)] * 3))


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_an_engine_of_two_ranks(
    family: str, start_engine: Callable[..., Engine], run: Any, folder_of_engine: Any
) -> None:
    engine = start_engine(family, sglang={"tp-size": 2})
    for transport in ("disk", "delta"):
        folder = folder_of_engine(engine, transport)
        folder.root = folder.sender.root = folder.root / transport
        for seed in (3, 4):
            model = tiny_models.build(family, seed)
            run(folder.send(weights_of(model)))
            assert_agrees(engine, model, run, 1.0, seed=7)
            changed = stepped(weights_of(model), seed)
            run(folder.send(changed))
            assert_holds(engine, changed, run, ranks=2)


@pytest.mark.long  # a server of its own
def test_deepseek_v3_takes_what_is_derived_from_its_weights(
    engine_of: Any, run: Any, folder_of_engine: Any
) -> None:
    from tests.runtime.rollout.inside_sglang.test_blocks import sent, trained

    engine = engine_of("deepseek_v3")
    folder = folder_of_engine(engine, "delta")
    for seed in (3, 4, 0):
        model = trained("deepseek_v3", seed)
        run(folder.send(sent(model)))
        assert_agrees(engine, model, run, 1.0, seed=7)
