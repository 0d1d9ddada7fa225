"""What trainer ranks publish together is whole, in the engines' format, and written anew when it is found damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.sync.test_convert import plain
from tests.sync.test_engine_format import assert_equal
from tests.sync.tiny_models import write_model
from tests.sync.world import World, run_world
from verst.runtime.trainer.folder_transport import versions_root
from verst.sync.config import WeightsConfig
from verst.sync.convert import convert
from verst.sync.disk import folder_of, versions
from verst.sync.formats import Fp8, Nvfp4
from verst.sync.hf_folder import copy_companions

SIZES = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "moe_intermediate_size": 128}


def test_each_life_of_each_run_has_a_folder_of_its_own():
    run, other = Path("/runs/a/one"), Path("/runs/b/one")
    assert versions_root(WeightsConfig(), run, 3) == run / "weights/attempt-3"
    shared = WeightsConfig(folder="/scratch")
    mine, its = versions_root(shared, run, 0), versions_root(shared, other, 0)
    assert mine.parent.parent == its.parent.parent == Path("/scratch")
    assert mine.parent != its.parent
    assert mine.name == "attempt-0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bfloat16, all of it, as the trainer has it."""
    made = write_model(tmp_path_factory.mktemp("m") / "float32", "qwen3_moe", **SIZES)
    folder = made.with_name("trained")
    folder.mkdir()
    copy_companions(made, folder)
    save_file({name: t.bfloat16() for name, t in plain(made).items()}, folder / "model.safetensors")
    return folder


def _publish(rank: int, world: int, store: str, trained: Path, engines: list[Path], out: Path) -> None:
    from verst.runtime.trainer.folder_transport import FolderTransport
    from verst.runtime.trainer.source_round import SourceRound
    from verst.runtime.weight_round import WeightRound
    from verst.sync.engine_format import EngineFormat
    from verst.sync.gather import Gather, whole_tensors
    from verst.sync.hf_folder import import_weights, read_config

    *_, bound = World(rank, world, store).build(trained, {"expert-model-parallel-size": 2}, dtype="bfloat16")
    import_weights(trained, bound)
    gather = Gather(bound, 100_000, torch.bfloat16)

    def source(version: int) -> Any:
        request = WeightRound(version=version, engines=[], pause="in_place", check=False, deadline_s=60)
        return None if rank else SourceRound(request, None, lambda engine: None)  # type: ignore[arg-type]

    def transport(engine: Path, root: Path) -> FolderTransport:
        format = EngineFormat(read_config(engine), whole_tensors(bound.layout))
        return FolderTransport(gather, format, WeightsConfig(transport="disk"), root, engine)

    for engine in engines:
        if rank == 0:
            (out / engine.name / "attempt-2/v000000009").mkdir(parents=True)
        sending = transport(engine, out / engine.name / "attempt-3")
        first, again, damaged, sound = (source(1) for _ in range(4))
        sending.publish(1, first)
        sending.publish(1, again)
        if rank == 0:
            assert first.bytes > 0
            assert all(first.seconds[phase] > 0 for phase in ("gather", "convert", "write"))
            assert again.bytes == 0, "it is there"
            file = next((out / engine.name).glob("attempt-3/v000000001/*.safetensors"))
            with file.open("r+b") as opened:
                opened.seek(-10, 2)
                opened.write(b"0123456789")
            sending._doubted = True
        sending.publish(1, damaged)
        if rank == 0:
            assert damaged.bytes == first.bytes
            sending._doubted = True  # for another reason: nothing is damaged
        sending.publish(1, sound)
        assert rank or sound.bytes == 0
    # A rank that cannot write says so when the others are done sending: none of them waits for it.
    (out / "file").write_text("in the way")
    blocked = transport(trained, out / "file/attempt-0")
    if rank == 0:
        with pytest.raises(OSError, match="file"):
            blocked.publish(1, source(1))
    else:
        blocked.publish(1, None)
    torch.distributed.barrier()


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
        assert [path.name for path in lives.iterdir()] == ["attempt-3.1"], "the others' versions are nobody's"
        assert versions(lives / "attempt-3.1") == [1]
        assert_equal(plain(folder_of(lives / "attempt-3.1", 1)), plain(engine))
