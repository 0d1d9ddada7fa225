"""What a trainer sends to a quantised engine is, bit for bit, what `verst convert` writes for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sync.hf.test_convert import plain
from tests.sync.tiny_models import write_model
from verst.sync.files.tensor_checksum import tensor_bytes
from verst.sync.formats import Bf16, Format, Fp8, Int4, Mxfp8, Nvfp4
from verst.sync.hf.convert import convert
from verst.sync.hf.folder import read_config
from verst.sync.links.broadcast import as_sent
from verst.sync.links.engine_format import EngineFormat
from verst.sync.versions.folder import folder_of
from verst.sync.versions.local_copy import LocalCopy, tensors_in
from verst.sync.versions.reader import open_version
from verst.sync.versions.sender import VersionSender

SIZES = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "moe_intermediate_size": 128}
FORMATS = [Bf16(), Fp8(), Fp8((64, 64), ue8m0=True), Mxfp8(), Nvfp4(), Int4(32)]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["qwen3", "qwen3_moe"])
def trained(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SIZES if request.param == "qwen3_moe" else {**SIZES, "moe_intermediate_size": None}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    return write_model(tmp_path_factory.mktemp("trained") / request.param, request.param, **sizes)


def sent(format: EngineFormat, weights: Weights, bucket: int) -> list[Weights]:
    """Bucket by bucket, as a gather yields them."""
    conversion, names = format.start(), list(weights)
    made = []
    for start in range(0, len(names), bucket):
        some = names[start : start + bucket]
        made.append(dict(zip(*conversion.feed(some, [weights[name] for name in some]), strict=True)))
    return made


def assert_equal(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert tensor_bytes(found[name]) == tensor_bytes(tensor), name


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_sent_published_and_copied_tensors_are_the_converters(trained, tmp_path, format: Format):
    converted = tmp_path / "converted"
    convert(trained, converted, format, ["model.layers.1.self_attn"] * (format.covers == "linear"))
    weights, wanted = plain(trained), plain(converted)
    if format.name == "bf16":  # of an engine without quantisation nothing is known but the trainer's dtype
        weights = {name: t.bfloat16() if t.ndim > 1 else t for name, t in weights.items()}
    engine = EngineFormat(
        read_config(converted), {name: tuple(tensor.shape) for name, tensor in weights.items()}
    )
    assert engine.converts == (format.name != "bf16")
    for bucket in (1, 5, len(weights)):
        made = sent(engine, weights, bucket)
        assert_equal({name: t for some in made for name, t in some.items()}, wanted)
    root = tmp_path / "weights"
    sender = VersionSender(root, keep=2, full_every=2, format=engine.quantization, companions=converted)
    for version, scale in ((1, 1.0), (2, 1.01)):
        made = sent(engine, {name: t * scale for name, t in weights.items()}, 5)
        sender.send(version, ((list(some), list(some.values())) for some in made))
    # The whole version is a folder that engines load as they load the converter's.
    assert_equal(plain(folder_of(root, 1)), wanted)
    assert read_config(folder_of(root, 1)) == read_config(converted)
    copy = LocalCopy(tmp_path)
    copy.follow(root, 1, 60)
    copy.follow(root, 2, 60)
    with open_version(root, 2) as reader:
        assert reader.index.format == engine.quantization
        assert_equal(
            dict(tensors_in(copy.path, reader.index)), {n: reader.tensor(n) for n in reader.index.tensors}
        )


def test_what_does_not_fit_is_named(trained):
    config = {"quantization_config": Nvfp4().config([])}
    with pytest.raises(ValueError, match=r"a\.weight"):
        EngineFormat(config, {"a.weight": (32, 17)})
    with pytest.raises(ValueError, match="quant_method 'gptq' is not known"):
        EngineFormat({"quantization_config": {"quant_method": "gptq"}}, {})


def test_bytes_cross_in_place_of_types_that_gloo_does_not_know():
    narrow = torch.zeros(3, 4, dtype=torch.float8_e4m3fn)
    assert as_sent(narrow).dtype == torch.uint8
    assert as_sent(narrow).data_ptr() == narrow.data_ptr()
    for dtype in (torch.bfloat16, torch.float32, torch.uint8, torch.int32):
        tensor = torch.zeros(2, dtype=dtype)
        assert as_sent(tensor) is tensor
