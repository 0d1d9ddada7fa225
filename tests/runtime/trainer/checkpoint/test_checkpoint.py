"""Checkpoints promise that a run continues as if it had never stopped: bit for bit in its own layout, and
with the same log-probabilities and the same next steps in any other layout.

Two processes run the scenarios below one after another, four with the long ones; fewer take part where the world is
smaller.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tests.runtime.trainer.tiny_models import Layout, make_plan, make_samples, make_updates
from tests.sync.world import run_world, wait_for

# One after another the long scenarios take minutes on a busy machine.
WHOLE_S = 1100
pytestmark = pytest.mark.timeout(WHOLE_S + 50)

TP, PP, EP, ETP = (
    f"{axis}-parallel-size" for axis in ("tensor-model", "pipeline-model", "expert-model", "expert-tensor")
)
VPP = "num-virtual-stages-per-pipeline-rank"
SHARDED = {"use-distributed-optimizer": True}
SP = {"sequence-parallel": True}
TP2_EP2 = {TP: 2, **SP, EP: 2, ETP: 1, **SHARDED}
# name: (family, layout, dtype, checkpoint to start from, steps before the checkpoint, checkpoint to write)
SCENARIOS: dict[str, tuple[str, Layout, str, str | None, int, str | None]] = {
    "moe tp2 ep2": ("qwen3_moe", Layout(2, TP2_EP2), "float32", None, 2, "moe"),
    "moe tp2 ep2 resumed from async": ("qwen3_moe", Layout(2, TP2_EP2), "float32", "moe-async", 0, None),
    "moe pp2": ("qwen3_moe", Layout(2, {PP: 2, **SHARDED}), "float32", "moe", 0, "moe-pp"),
}
# Run where a long test was chosen, after the others.
LONG_SCENARIOS: dict[str, tuple[str, Layout, str, str | None, int, str | None]] = {
    "moe tp2 ep2 resumed": ("qwen3_moe", Layout(2, TP2_EP2), "float32", "moe", 0, None),
    "moe tp2 ep2 dp2": ("qwen3_moe", Layout(4, TP2_EP2), "float32", "moe", 0, "moe-dp"),
    "moe tp2 ep2 dp2 resumed": ("qwen3_moe", Layout(4, TP2_EP2), "float32", "moe-dp", 0, None),
    "moe pp2 dp2": ("qwen3_moe", Layout(4, {PP: 2, **SHARDED}), "float32", "moe-dp", 0, None),
    "moe ep2 without sharding": ("qwen3_moe", Layout(2, {EP: 2}), "float32", "moe-pp", 0, None),
    "dense tp2": ("qwen3", Layout(2, {TP: 2, **SHARDED}), "float32", None, 2, "dense"),
    "dense tp1": ("qwen3", Layout(1, SHARDED), "float32", "dense", 0, None),
    "another model": ("qwen3", Layout(1, {}), "float32", "moe", 0, None),
    "without a reference": ("qwen3", Layout(1, {}), "float32", "dense", 0, None),
    "dense vpp2": ("qwen3", Layout(2, {PP: 2, VPP: 2}), "float32", "dense", 0, None),
    "bf16 dp2": ("llama", Layout(2, SHARDED), "bfloat16", None, 2, "half"),
    "bf16 tp1 without sharding": ("llama", Layout(1, {}), "bfloat16", "half", 0, None),
    "bf16 dp2 resumed": ("llama", Layout(2, SHARDED), "bfloat16", "half", 0, None),
    "bf16 pp2": ("llama", Layout(2, {PP: 2, **SHARDED}), "bfloat16", "half", 0, None),
    "sparse tp2": ("glm_moe_dsa", Layout(2, {TP: 2, **SP}), "float32", None, 2, "sparse"),
    "sparse pp2": ("glm_moe_dsa", Layout(2, {PP: 2}), "float32", "sparse", 0, None),
}
# Scenarios with a supervised step before the policy steps, and a KL to the reference, the model between them.
WITH_REFERENCE = ("moe", "without a reference")


def _run_all(
    rank: int, world: int, store: str, models: dict[str, Path], out: Path, scenarios: dict[str, Any]
) -> None:
    before: list[Path] = []
    for number, (name, scenario) in enumerate(scenarios.items()):
        layout = scenario[1]
        if rank < layout.world_size:
            wait_for(before)
            kl = name.startswith(WITH_REFERENCE)
            answer = _run(rank, f"{store}-{number}", models, out, kl, *scenario)
            (out / f"{name}.{rank}.json").write_text(json.dumps(answer))
        before = [out / f"{name}.{one}.json" for one in range(layout.world_size)]


def _run(
    rank: int,
    store: str,
    models: dict[str, Path],
    out: Path,
    kl: bool,
    family: str,
    layout: Layout,
    dtype: str,
    start: str | None,
    steps: int,
    save: str | None,
) -> dict[str, Any]:
    """Loads, trains and saves as the scenario says, and reports the two steps after that."""
    import torch

    from verst.runtime.trainer.checkpoint.checkpoint import Checkpointer
    from verst.runtime.trainer.config import CheckpointConfig

    life = _Life(rank, store, models[family], layout, dtype, kl)
    checkpointer = Checkpointer(life.trainer, CheckpointConfig(keep=1))
    if not start:
        torch.rand(rank + 1)  # so that random states differ from those of a fresh start
    try:
        version = checkpointer.load(out / start / "step-000002") if start else 0
    except ValueError as error:
        life.trainer.close()
        return {"error": str(error), "logprobs": []}
    for step in range(version, version + steps):
        life.train(step)
    answer: dict[str, Any] = {"version": version, "logprobs": life.logprobs()}
    if save:
        _export(life.trainer, models[family], dtype, out / f"{save}-exported")
        answer |= _save(life, checkpointer, rank, out, save)
    if "next" not in answer:
        answer["next"] = [life.train(2)]
    if layout.world_size == 1 and start == "dense":
        answer["killed"] = _kill_a_writer(life.trainer, out / "killed")
    answer["next"].append(life.train(3))
    answer["after"] = life.logprobs()
    answer["kl"] = life.kl
    answer["random"] = _random_numbers()
    life.trainer.close()
    return answer


class _Life:
    """A trainer and the samples that it trains on."""

    def __init__(self, rank: int, store: str, folder: Path, layout: Layout, dtype: str, kl: bool) -> None:
        import torch.distributed as dist

        from verst.runtime.algorithms.config import AlgorithmConfig
        from verst.runtime.algorithms.stages import PolicyStage, SftFileConfig, SftStage
        from verst.runtime.messages.model_config import ModelConfig
        from verst.runtime.trainer.config import TrainerConfig
        from verst.runtime.trainer.parallel import Parallel
        from verst.runtime.trainer.trainer import Trainer

        self.kl: list[float] = []  # from the reference, in each policy step of this life
        self._offline = int(kl)
        before = SftStage(kind="sft", data=SftFileConfig(path=""), steps=1)
        self._samples = make_samples(folder)
        self._by_place = {(s.group, s.index): s for s in self._samples}
        parallel = Parallel(rank, layout.world_size, dist.FileStore(store, layout.world_size), timeout_s=100)
        self.trainer = Trainer(
            ModelConfig(path=str(folder), dtype=dtype),  # type: ignore[arg-type]
            TrainerConfig(
                max_tokens_per_microbatch=64,
                max_logprob_diff=1e9,  # the samples are no engine's
                megatron={"lr": 1e-3, "lr-decay-style": "linear", "lr-warmup-iters": 1, **layout.megatron},
            ),
            AlgorithmConfig(
                steps=20,
                prompts_per_step=1,
                samples_per_prompt=len(self._samples),
                mini_batches=2,
                epochs=2,
                kl_coef=0.1 * kl,
                kl_target=1e-4 if kl else None,
                kl_horizon=20 if kl else 10_000,
                stages=[*([before] if kl else []), PolicyStage(kind="policy")],
            ),
            parallel,
            train_steps=20,
        )
        # The first policy step takes one update, so that its KL is that of the model which the stage before left;
        # later ones of this family take four.
        self._updates = "moe" in folder.name and "glm" not in folder.name

    def train(self, step: int) -> list[float]:
        kind: Literal["sft", "policy"] = "sft" if step < self._offline else "policy"
        if step > 1 and self._updates:
            plan = make_updates(self._samples, self.trainer.parallel.dp_size, step)
        else:
            plan = make_plan(self._samples, self.trainer.parallel.dp_size, kind, step)
        report = self.trainer.train(plan, self._by_place)
        self.kl += [report.metrics["kl_reference_k3"]] if "kl_reference_k3" in report.metrics else []
        return [report.loss, report.grad_norm, report.lr]

    def logprobs(self) -> list[float] | None:
        found = self.trainer.logprobs(self._samples)
        return None if found is None else np.concatenate(found).tolist()


def _save(life: _Life, checkpointer: Any, rank: int, out: Path, name: str) -> dict[str, Any]:
    """Writes two checkpoints, of which one is kept; "dense" also to a full disk, "moe" also in the
    background."""
    answer: dict[str, Any] = {}
    checkpointer.save(out / name / "step-000001", 1, b"older")
    checkpointer.save(out / name / "step-000002", 2, b"controller's state")
    if name == "dense":
        answer["full"] = _save_on_a_disk_that_is_full_for_rank_1(checkpointer, rank, out / "full")
    if name == "moe":
        answer |= _save_in_the_background(life, out / "moe-async" / "step-000002")
    return answer


def _export(trainer: Any, model: Path, dtype: str, folder: Path) -> None:
    """Exports the model from the ranks' memory, as a run does at its end."""
    import torch

    from verst.sync.hf.export import export

    export(trainer.model.bound, 1 << 20, getattr(torch, dtype), model, folder)


def _save_in_the_background(life: _Life, path: Path) -> dict[str, Any]:
    """Trains a step while the checkpoint is being written."""
    from verst.runtime.trainer.checkpoint.checkpoint import Checkpointer
    from verst.runtime.trainer.config import CheckpointConfig

    background = Checkpointer(life.trainer, CheckpointConfig(**{"async": True}))
    began = time.monotonic()
    background.save(path, 2, b"controller's state")
    returned = [time.monotonic() - began, path.exists()]
    following = [life.train(2)]
    assert background.finish(wait=True)
    return {"async": [*returned, time.monotonic() - began, background.finish(wait=False)], "next": following}


def _random_numbers() -> list[float]:
    """Returns the next random numbers of Megatron's tracker and of torch."""
    import torch
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork():
        tracked = torch.rand(2).tolist()
    return tracked + torch.rand(2).tolist()


def _save_on_a_disk_that_is_full_for_rank_1(checkpointer: Any, rank: int, folder: Path) -> str:
    """Returns the error on each rank."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if rank == 1 else before[0], before[1]))
    try:
        checkpointer.save(folder / "step-000003", 3, b"")
    except RuntimeError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "it was written"


def _kill_a_writer(trainer: Any, folder: Path) -> dict[str, Any]:
    """Kills the process that writes a checkpoint in the background, then writes another one."""
    from verst.runtime.run.checkpoints import latest
    from verst.runtime.trainer.checkpoint.checkpoint import Checkpointer
    from verst.runtime.trainer.config import CheckpointConfig

    checkpointer = Checkpointer(trainer, CheckpointConfig(**{"async": True}))
    error = ""
    for version in range(20):  # the writer may finish before the signal reaches it
        checkpointer.save(folder / f"step-{version:06d}", version, b"")
        writer = checkpointer._queue.async_calls[0].async_caller.process
        writer.kill()
        writer.join(timeout=30)
        if writer.exitcode == 0:
            checkpointer.finish(wait=True)
            continue
        try:
            checkpointer.finish(wait=True)
        except RuntimeError as caught:
            error = str(caught)
        break
    before = latest(folder)
    checkpointer.save(folder / "step-000100", 100, b"")
    checkpointer.finish(wait=True)
    found = latest(folder)
    return {
        "error": error,
        "killed": f"step-{version:06d}",
        "before": before.name if before else "",
        "after": found.name if found else "",
    }


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Each scenario's answer by its name, and the checkpoints' folder under "folder"."""
    out = tmp_path_factory.mktemp("checkpoints")
    chosen = [item for item in request.session.items if item.path == request.path]
    long = any(item.get_closest_marker("long") for item in chosen)
    scenarios = SCENARIOS | (LONG_SCENARIOS if long else {})
    world = max(layout.world_size for _, layout, *_ in scenarios.values())
    run_world(world, _run_all, models, out, scenarios, timeout=WHOLE_S)
    return {"folder": out} | {name: _merged(out, name) for name in scenarios}


def _merged(out: Path, name: str) -> dict[str, Any]:
    """Returns the answer of the last pipeline stage's first rank, with every rank's random numbers."""
    answers = [json.loads(path.read_text()) for path in sorted(out.glob(f"{name}.?.json"))]
    last_stage = next(answer for answer in answers if answer["logprobs"] is not None)
    return last_stage | {"random": [answer.get("random") for answer in answers]}


@pytest.mark.parametrize(
    ("first", "resumed"),
    [
        pytest.param("moe tp2 ep2", "moe tp2 ep2 resumed", marks=pytest.mark.long),
        ("moe tp2 ep2", "moe tp2 ep2 resumed from async"),
        pytest.param("moe tp2 ep2 dp2", "moe tp2 ep2 dp2 resumed", marks=pytest.mark.long),
        pytest.param("bf16 dp2", "bf16 dp2 resumed", marks=pytest.mark.long),
    ],
)
def test_in_its_own_layout_a_run_goes_on_bit_for_bit(
    results: dict[str, Any], first: str, resumed: str
) -> None:
    assert results[resumed]["version"] == 2
    for key in ("logprobs", "next", "after", "random"):
        assert results[resumed][key] == results[first][key], key
    assert results[first]["next"][0] != results[first]["next"][1]


@pytest.mark.parametrize(
    ("first", "resumed"),
    [
        ("moe tp2 ep2", "moe pp2"),
        pytest.param("moe tp2 ep2", "moe tp2 ep2 dp2", marks=pytest.mark.long),
        pytest.param("moe tp2 ep2 dp2", "moe pp2 dp2", marks=pytest.mark.long),
        pytest.param("moe pp2", "moe ep2 without sharding", marks=pytest.mark.long),
        pytest.param("dense tp2", "dense tp1", marks=pytest.mark.long),
        pytest.param("dense tp2", "dense vpp2", marks=pytest.mark.long),
        # layers with an indexer, and layers that share its choice
        pytest.param("sparse tp2", "sparse pp2", marks=pytest.mark.long),
        pytest.param("bf16 dp2", "bf16 tp1 without sharding", marks=pytest.mark.long),
        pytest.param("bf16 dp2", "bf16 pp2", marks=pytest.mark.long),
    ],
)
def test_under_another_layout_the_next_steps_are_the_same(
    results: dict[str, Any], first: str, resumed: str
) -> None:
    before, after = results[first], results[resumed]
    assert after["version"] == 2
    half = "bf16" in first
    # fp32 masters and moments are restored exactly; only the order of sums in the forward pass differs.
    np.testing.assert_allclose(after["logprobs"], before["logprobs"], atol=0.05 if half else 5e-6)
    np.testing.assert_allclose(after["next"], before["next"], rtol=0.05 if half else 2e-5, atol=1e-6)
    np.testing.assert_allclose(after["after"], before["after"], atol=0.1 if half else 1e-4)
    # The two steps change the model by far more than the tolerance.
    assert np.abs(np.subtract(before["after"], before["logprobs"])).max() > (0.2 if half else 1e-2)


def test_after_a_supervised_stage_the_reference_is_the_model_that_it_left(results: dict[str, Any]) -> None:
    first, *later = results["moe tp2 ep2"]["kl"]
    assert first == pytest.approx(0, abs=1e-9)
    assert min(later) > 1e-4


def test_a_resumed_run_has_the_same_reference_in_any_layout(results: dict[str, Any]) -> None:
    expected = results["moe tp2 ep2"]["kl"][1:]
    resumed = [name for name in results if name.startswith("moe tp2 ep2 resumed")]
    others = [name for name in results if name.startswith(("moe pp2", "moe ep2", "moe tp2 ep2 dp2"))]
    assert resumed
    assert others
    for name in resumed:
        assert results[name]["kl"] == expected
    for name in others:
        assert results[name]["kl"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.long
def test_only_a_run_that_needs_a_reference_writes_it(results: dict[str, Any]) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    def stored(name: str) -> int:
        written = FileSystemReader(results["folder"] / name / "step-000002").read_metadata()
        return sum(key.startswith("reference.") for key in written.state_dict_metadata)

    assert stored("moe") > 0
    assert stored("dense") == 0


@pytest.mark.long
def test_a_checkpoint_without_the_reference_is_refused(results: dict[str, Any]) -> None:
    error = results["without a reference"]["error"]
    assert "step-000002 holds no reference policy, and algorithm.kl_coef is above 0" in error


def test_parameters_are_named_as_transformer_engines_layers_name_them(results: dict[str, Any]) -> None:
    """So a checkpoint can be read with Transformer Engine and without it. Checks the norms, fused ones and
    those before experts."""
    from torch.distributed.checkpoint import FileSystemReader

    written = FileSystemReader(results["folder"] / "moe/step-000002").read_metadata().state_dict_metadata
    names = {name for name in written if not name.startswith(("optimizer.", "random.", "reference."))}
    norms = {name for name in names if name.startswith("decoder.layers.") and "norm" in name}
    dense, sparse = "decoder.layers.0.", "decoder.layers.1."
    for layer, before_mlp in (
        (dense, "mlp.linear_fc1.layer_norm_weight"),
        (sparse, "pre_mlp_layernorm.weight"),
    ):
        attention = ("linear_qkv.layer_norm_weight", "q_layernorm.weight", "k_layernorm.weight")
        expected = {f"{layer}{before_mlp}", *(f"{layer}self_attention.{name}" for name in attention)}
        assert {name for name in norms if name.startswith(layer)} == expected
    assert not [name for name in written if "_extra_state" in name]


@pytest.mark.parametrize(
    ("name", "family", "dtype"),
    [
        ("moe", "qwen3_moe", "float32"),
        ("moe-pp", "qwen3_moe", "float32"),
        pytest.param("moe-dp", "qwen3_moe", "float32", marks=pytest.mark.long),
        pytest.param("dense", "qwen3", "float32", marks=pytest.mark.long),
        pytest.param("half", "llama", "bfloat16", marks=pytest.mark.long),
        pytest.param("sparse", "glm_moe_dsa", "float32", marks=pytest.mark.long),
    ],
)
def test_the_export_of_a_checkpoint_is_that_of_the_ranks_memory(
    results: dict[str, Any], models: dict[str, Path], tmp_path: Path, name: str, family: str, dtype: Any
) -> None:
    """Bit for bit, and without Megatron."""
    import torch

    from verst.runtime.messages.model_config import ModelConfig
    from verst.runtime.trainer.checkpoint.export import export_checkpoint
    from verst.sync.hf.folder import HfFolder

    out = tmp_path / "exported"
    model = ModelConfig(path=str(models[family]), dtype=dtype)
    shown: list[tuple[str, int, int]] = []
    count = export_checkpoint(
        results["folder"] / name / "step-000002",
        model,
        out,
        lambda *told: shown.append(told),
        shard_bytes=1 << 16,
    )
    expected, found = HfFolder(results["folder"] / f"{name}-exported"), HfFolder(out)
    assert set(found.files) == set(expected.files)
    assert len(set(found.files.values())) > 1, "several files, each written before the next is read"
    assert count == len(found.files)
    assert [done for _, done, _ in shown] == list(range(len(shown)))
    for tensor in expected.files:
        assert torch.equal(found.whole(tensor), expected.whole(tensor)), tensor
    assert (out / "config.json").read_text() == (
        results["folder"] / f"{name}-exported/config.json"
    ).read_text()


def test_the_export_of_a_checkpoint_of_another_model_is_refused(
    results: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    from verst.runtime.messages.model_config import ModelConfig
    from verst.runtime.trainer.checkpoint.export import export_checkpoint

    model = ModelConfig(path=str(models["qwen3"]), dtype="float32")
    with pytest.raises(ValueError, match="step-000002 holds another model than"):
        export_checkpoint(results["folder"] / "moe" / "step-000002", model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_checkpoint_of_another_model_is_refused(results: dict[str, Any]) -> None:
    assert "step-000002 holds another model than model.path" in results["another model"]["error"]


def test_an_async_checkpoint_returns_at_once_and_is_complete_when_it_says_so(results: dict[str, Any]) -> None:
    started, existed_at_once, finished, still_done = results["moe tp2 ep2"]["async"]
    assert started < finished
    assert not existed_at_once
    assert still_done


@pytest.mark.long
def test_a_writer_that_is_killed_is_reported_and_leaves_no_checkpoint(results: dict[str, Any]) -> None:
    killed = results["dense tp1"]["killed"]
    assert "results_queue should not be empty" in killed["error"]
    assert killed["before"] < killed["killed"]
    assert killed["after"] == "step-000100"


@pytest.mark.long
def test_a_checkpoint_that_does_not_fit_is_told_alike_by_all_ranks_and_takes_no_space(
    results: dict[str, Any],
) -> None:
    folder = results["folder"] / "full"
    told = [json.loads((results["folder"] / f"dense tp2.{rank}.json").read_text())["full"] for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0].startswith(f"{folder / 'step-000003'} could not be written: rank 1: ")
    assert list(folder.iterdir()) == []


def test_only_as_many_as_asked_are_kept_with_the_controllers_state(results: dict[str, Any]) -> None:
    from verst.runtime.run.checkpoints import controller_state, latest

    folder = results["folder"] / "moe"
    assert [path.name for path in folder.iterdir()] == ["step-000002"]
    newest = latest(folder)
    assert newest is not None
    assert controller_state(newest) == b"controller's state"
