"""The promise: versions that ranks publish together are whole, and are written again when damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.sync.hf.test_convert import plain
from tests.sync.links.test_engine_format import assert_equal
from tests.sync.tiny_models import write_model
from tests.sync.world import World, run_world
from verst.runtime.trainer.weights.folder_transport import versions_root
from verst.sync.config import WeightsConfig
from verst.sync.formats import Fp8, Nvfp4
from verst.sync.hf.convert import convert
from verst.sync.hf.folder import copy_companions
from verst.sync.versions.folder import folder_of, versions
from verst.sync.versions.reader import open_version

SIZES = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "moe_intermediate_size": 128}


def test_each_life_of_each_run_has_a_folder_of_its_own():
    run, other = Path("/runs/a/one"), Path("/runs/b/one")
    assert versions_root(WeightsConfig(), run, 3) == run / "weights/life-3"
    shared = WeightsConfig(folder="/scratch")
    mine, its = versions_root(shared, run, 0), versions_root(shared, other, 0)
    assert mine.parent.parent == its.parent.parent == Path("/scratch")
    assert mine.parent != its.parent
    assert mine.name == "life-0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with every tensor in bfloat16, as in the trainer."""
    made = write_model(tmp_path_factory.mktemp("m") / "float32", "qwen3_moe", **SIZES)
    folder = made.with_name("trained")
    folder.mkdir()
    copy_companions(made, folder)
    save_file({name: t.bfloat16() for name, t in plain(made).items()}, folder / "model.safetensors")
    return folder


def _bound(rank: int, world: int, store: str, trained: Path) -> Any:
    from verst.sync.hf.folder import import_weights

    *_, bound = World(rank, world, store).build(trained, {"expert-model-parallel-size": 2}, dtype="bfloat16")
    import_weights(trained, bound)
    return bound


def _transport(bound: Any, config: WeightsConfig, engine: Path, root: Path) -> Any:
    from verst.runtime.trainer.weights.folder_transport import FolderTransport
    from verst.sync.hf.folder import read_config
    from verst.sync.links.engine_format import EngineFormat
    from verst.sync.links.gather import whole_tensors
    from verst.sync.links.whole_share import WholeShare

    shapes = whole_tensors(bound.layout)
    format = EngineFormat(read_config(engine), shapes)
    share = WholeShare(bound, format.grouped(shapes), 100_000, torch.bfloat16)
    return FolderTransport(share, format, config, root, engine)


def _source(rank: int, version: int) -> Any:
    from verst.runtime.messages.weight_round import WeightRound
    from verst.runtime.trainer.weights.source_round import SourceRound

    request = WeightRound(version=version, engines=[], pause="in_place", check=False, deadline_s=60)
    return None if rank else SourceRound(request, None, lambda engine: None)  # type: ignore[arg-type]


def _publish(rank: int, world: int, store: str, trained: Path, engines: list[Path], out: Path) -> None:
    bound = _bound(rank, world, store, trained)
    disk = WeightsConfig(transport="disk")
    for engine in engines:
        if rank == 0:
            (out / engine.name / "life-2/v000000009").mkdir(parents=True)
        sending = _transport(bound, disk, engine, out / engine.name / "life-3")
        first, again, damaged, sound = (_source(rank, 1) for _ in range(4))
        sending.publish(1, first)
        sending.publish(1, again)
        if rank == 0:
            assert first.bytes > 0
            assert all(first.seconds[phase] > 0 for phase in ("gather", "convert", "write"))
            assert again.bytes == 0, "the version is there already"
            file = next((out / engine.name).glob("life-3/v000000001/*.safetensors"))
            with file.open("r+b") as opened:
                opened.seek(-10, 2)
                opened.write(b"0123456789")
            sending._doubted = True
        sending.publish(1, damaged)
        if rank == 0:
            assert damaged.bytes == first.bytes
            sending._doubted = True  # the engine failed for another reason: nothing is damaged
        sending.publish(1, sound)
        assert rank or sound.bytes == 0


def _fail(rank: int, world: int, store: str, trained: Path, out: Path, bad: int) -> None:
    """Rank `bad` cannot write. The others still get its blocks, and every rank learns which rank failed."""
    bound = _bound(rank, world, store, trained)
    sending = _transport(bound, WeightsConfig(transport="disk"), trained, out)
    if rank == bad:
        # A folder is in the way of this rank's file.
        (out / f"v000000001/parts/.trainer-{bad}.json.partial").mkdir(parents=True)
    torch.distributed.barrier()
    with pytest.raises(OSError, match=rf"trainer rank {bad} cannot write weights: .*trainer-{bad}.json"):
        sending.publish(1, _source(rank, 1))
    torch.distributed.barrier()


def _publish_deltas(rank: int, world: int, store: str, trained: Path, out: Path) -> None:
    """Publishes two versions as deltas, of which the second changes some elements, and the second as a
    whole."""
    bound = _bound(rank, world, store, trained)
    deltas = _transport(bound, WeightsConfig(transport="delta"), trained, out / "delta/life-0")
    deltas.publish(1, _source(rank, 1))
    for _, parameter in bound.parameters:
        parameter.data.view(-1)[:3] += 1
    changed, whole = _source(rank, 2), _source(rank, 2)
    deltas.publish(2, changed)
    _transport(bound, WeightsConfig(transport="disk"), trained, out / "disk/life-0").publish(2, whole)
    assert rank or 0 < changed.bytes < whole.bytes / 10
    kept = [0] * world
    torch.distributed.all_gather_object(kept, sum(t.nbytes for t in deltas._sender._last.values()))
    assert max(kept) < 1.5 * min(kept), "each rank keeps its share of the last version"


def test_two_ranks_publish_what_verst_convert_writes(trained: Path, tmp_path: Path) -> None:
    engines = []
    for format in (Fp8(), Nvfp4()):
        engines.append(tmp_path / format.name)
        convert(trained, engines[-1], format)
    out = tmp_path / "out"
    out.mkdir()
    run_world(2, _publish, trained, [trained, *engines], out)
    for engine in (trained, *engines):
        lives = out / engine.name
        assert [path.name for path in lives.iterdir()] == ["life-3.1"], "other lives' versions are removed"
        assert versions(lives / "life-3.1") == [1]
        folder = folder_of(lives / "life-3.1", 1)
        assert_equal(plain(folder), plain(engine))
        written = [sum(f.stat().st_size for f in folder.glob(f"trainer-{rank}-*")) for rank in range(2)]
        assert max(written) < 1.5 * min(written), "both write"


@pytest.mark.long
@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_cannot_write_is_named_and_none_waits_for_it(trained: Path, tmp_path: Path, bad: int):
    run_world(2, _fail, trained, tmp_path / "life-0", bad)
    assert versions(tmp_path / "life-0") == []


@pytest.mark.long
def test_two_ranks_tell_what_changed(trained: Path, tmp_path: Path) -> None:
    run_world(2, _publish_deltas, trained, tmp_path)
    with (
        open_version(tmp_path / "delta/life-0") as told,
        open_version(tmp_path / "disk/life-0") as whole,
    ):
        assert told.index.base == 1
        assert {entry.file for entry in told.index.tensors.values()} >= {
            "trainer-0.deltas",
            "trainer-1.deltas",
        }
        assert told.index.tensors.keys() == whole.index.tensors.keys()
        assert told.version == whole.version == 2
        for name in whole.index.tensors:
            assert torch.equal(told.tensor(name), whole.tensor(name)), name
