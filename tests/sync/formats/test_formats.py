"""Each format: equal to a slow reference bit for bit, shards equal to the whole, errors bounded and named."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sync.formats import references as reference
from verst.sync.files.tensor_checksum import tensor_bytes
from verst.sync.formats import Bf16, Format, Fp8, Int4, Mxfp8, Nvfp4, of_config

FORMATS = [Bf16(), Fp8(), Fp8((16, 32)), Fp8(ue8m0=True), Mxfp8(), Nvfp4(), Int4(32), Int4(128)]
NAME = "model.layers.0.mlp.down_proj.weight"
BASE = NAME.removesuffix("weight")


def label(format: Format) -> str:
    return "-".join(str(v) for v in (format.name, *vars(format).values()) if not isinstance(v, tuple))


def weights(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Numbers of many sizes: rows of different scale, outliers, exact zeros, a stretch of zeros, both zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.exp2(torch.randint(-12, 4, (rows, 1), generator=generator).float())
    x[torch.rand(rows, columns, generator=generator) < 0.01] *= 50
    x[torch.rand(rows, columns, generator=generator) < 0.05] = 0
    x[rows // 2, : columns // 2] = 0
    x[0, 0] = -0.0
    return x.to(dtype)


def bits(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().view(torch.uint8 if x.dtype.itemsize == 1 else torch.int32).numpy()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize(
    ("shape", "block"), [((130, 140), (128, 128)), ((33, 50), (16, 32)), ((1, 1), (128, 128))]
)
def test_fp8_is_the_reference(shape, block, ue8m0, dtype):
    x = weights(*shape, dtype=dtype)
    made = Fp8(block, ue8m0).tensors(NAME, x)
    codes, scales = reference.fp8(x, block, ue8m0)
    assert np.array_equal(bits(made[NAME]), codes)
    assert np.array_equal(made[BASE + "weight_scale_inv"].numpy(), scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mxfp8_is_the_reference(dtype):
    x = weights(40, 128, dtype=dtype)
    made = Mxfp8().tensors(NAME, x)
    codes, scales = reference.mxfp8(x)
    assert np.array_equal(bits(made[NAME]), codes)
    assert np.array_equal(made[BASE + "weight_scale_inv"].numpy(), scales)


@pytest.mark.parametrize("amax", [None, 1000.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nvfp4_is_the_reference(dtype, amax):
    x = weights(40, 128, dtype=dtype)
    made = Nvfp4().tensors(NAME, x, amax=None if amax is None else torch.tensor(amax))
    codes, scales, outer = reference.nvfp4(x, float(x.abs().max()) if amax is None else amax)
    assert made[BASE + "weight_scale_2"].item() == outer
    assert made[BASE + "weight_scale_2"].shape == made[BASE + "input_scale"].shape == ()
    assert np.array_equal(bits(made[BASE + "weight_scale"]), scales)
    assert np.array_equal(made[NAME].numpy(), codes)


@pytest.mark.parametrize("format", [f for f in FORMATS if not f.two_phase], ids=label)
def test_several_at_once_are_each_alone(format, monkeypatch):
    monkeypatch.setattr("verst.sync.formats.format._TOGETHER", 3 * 128 * 256)  # of seven alike: 3, 3 and 1
    shapes = [(128, 256)] * 7 + [(130, 128)] * 2 + [(256, 128), (128, 256)]
    sources = {f"layers.{i}.weight": weights(*shape, seed=i) for i, shape in enumerate(shapes)}
    sources["layers.10.weight"] = weights(128, 256, seed=10, dtype=torch.float32)
    wanted: dict[str, torch.Tensor] = {}
    for name, source in sources.items():
        wanted |= format.tensors(name, source)
    found = format.several(sources)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert tensor_bytes(found[name]) == tensor_bytes(tensor), name
    assert format.several({}) == {}
    if format.name != "bf16":
        sources["layers.5.weight"][7, 7] = torch.inf
        with pytest.raises(ValueError, match=r"layers\.5\.weight holds an infinity"):
            format.several(sources)


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_int4_is_the_reference(dtype, group):
    x = weights(20, 256, dtype=dtype)
    made = Int4(group).tensors(NAME, x)
    packed, scales = reference.int4(x, group)
    assert np.array_equal(made[BASE + "weight_scale"].float().numpy(), scales)
    assert np.array_equal(made[BASE + "weight_packed"].numpy(), packed)
    assert made[BASE + "weight_shape"].tolist() == [20, 256]


@pytest.mark.parametrize("format", FORMATS, ids=label)
def test_what_is_derived_is_known_beforehand(format):
    made = format.tensors(NAME, weights(48, 256))
    assert {d.name: (d.shape, d.dtype) for d in format.derived(NAME, (48, 256))} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in made.items()
    }
    assert all(tensor.is_contiguous() for tensor in made.values())


@settings(max_examples=60)
@given(data=st.data())
def test_shards_are_slices_of_the_whole_bit_for_bit(data):
    format = data.draw(st.sampled_from(FORMATS), "format")
    grain = format.granularity()
    wide = {Int4: getattr(format, "group", 0), Mxfp8: 32, Nvfp4: 16}.get(type(format), 1)
    rows = data.draw(st.integers(1, 40 if grain[0] == 1 else 300), "rows")
    columns = (
        data.draw(st.integers(1, 4), "groups") * wide
        if wide > 1
        else data.draw(st.integers(1, 300), "columns")
    )
    x = weights(rows, columns, data.draw(st.integers(0, 99), "seed"))
    dim = data.draw(st.sampled_from([0, 1]), "dim")
    inner = range(grain[dim], x.shape[dim], grain[dim])
    marks = data.draw(st.lists(st.sampled_from(inner), unique=True) if inner else st.just([]), "cuts")
    edges = [0, *sorted(marks), x.shape[dim]]
    whole = format.tensors(NAME, x)
    # Two phases: every shard's own largest value, reduced as ranks would.
    shards = [x.narrow(dim, a, b - a) for a, b in pairwise(edges)]
    amax = torch.stack([format.amax(shard) for shard in shards]).max() if format.two_phase else None
    for start, shard in zip(edges, shards, strict=False):
        made = format.tensors(NAME, shard, shape=(rows, columns), amax=amax)
        cuts = format.cut(NAME, x.shape, dim, start, shard.shape[dim])
        assert cuts.keys() == made.keys() == whole.keys()
        for name, cut in cuts.items():
            expected = whole[name] if cut is None else whole[name].narrow(*cut)
            assert made[name].dtype == expected.dtype
            assert tensor_bytes(made[name]) == tensor_bytes(expected), (name, cut)


@pytest.mark.parametrize("format", FORMATS, ids=label)
def test_the_derived_slices_of_all_shards_are_the_derived_tensor(format):
    grain, shape = format.granularity(), (512, 512)
    for dim in (0, 1):
        step = grain[dim] * 2
        ends: dict[str, int] = {}
        for start in range(0, shape[dim], step):
            for name, cut in format.cut(NAME, shape, dim, start, min(step, shape[dim] - start)).items():
                if cut is not None:
                    assert cut[0] == dim
                    assert cut[1] == ends.get(name, 0)
                    ends[name] = cut[1] + cut[2]
        sizes = {d.name: d.shape[dim] for d in format.derived(NAME, shape) if d.name in ends}
        assert ends == sizes


@pytest.mark.parametrize(
    ("format", "dim", "start", "length", "wanted"),
    [
        (Fp8(), 0, 64, 64, "multiples of 128"),
        (Fp8(), 1, 0, 100, "multiples of 128"),
        (Mxfp8(), 1, 16, 32, "multiples of 32"),
        (Nvfp4(), 1, 0, 8, "multiples of 16"),
        (Int4(128), 1, 32, 128, "multiples of 128"),
        (Fp8(), 0, 128, 200, "no slice 128:328"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_slice_that_cuts_a_block_is_refused(format, dim, start, length, wanted):
    with pytest.raises(ValueError, match=wanted) as caught:
        format.cut(NAME, (256, 256), dim, start, length)
    assert NAME in str(caught.value)


def test_the_last_block_may_be_partial():
    assert Fp8().cut(NAME, (300, 200), 0, 256, 44)[BASE + "weight_scale_inv"] == (0, 2, 1)
    assert Fp8().derived(NAME, (300, 200))[1].shape == (3, 2)


@pytest.mark.parametrize("format", [Mxfp8(), Nvfp4(), Int4(32)], ids=label)
def test_columns_that_are_no_whole_groups_are_refused(format):
    for call in (lambda: format.tensors(NAME, weights(4, 40)), lambda: format.derived(NAME, (4, 40))):
        with pytest.raises(ValueError, match=rf"{NAME}.* multiple of .* this has 40"):
            call()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("format", FORMATS[1:], ids=label)
def test_what_is_not_finite_is_refused(format, value):
    x = weights(8, 128)
    x[3, 77] = value
    with pytest.raises(ValueError, match=rf"{NAME} holds an infinity or a NaN"):
        format.tensors(NAME, x)


@pytest.mark.parametrize("format", FORMATS, ids=label)
@pytest.mark.parametrize("scale", [0.0, 1e-40, 2.0**-133, 1e-30, 1.0, 1e30, 3e38])
def test_restored_values_are_near_at_any_size(format, scale):
    x = (weights(16, 256).float().clamp(-1, 1) * scale).bfloat16()
    made = format.tensors(NAME, x)
    restored = format.restore({name.removeprefix(BASE): tensor for name, tensor in made.items()}).double()
    assert restored.isfinite().all()
    error = (restored - x.double()).abs()
    # Half a step at the block's largest value; 2^-126 is where scales end, 2^-8 is bfloat16's own rounding.
    step = {Bf16: 0.0, Fp8: 1 / 16, Mxfp8: 1 / 14, Nvfp4: 1 / 5, Int4: 1 / 13}[type(format)]
    floor = 0 if isinstance(format, Bf16) else {Nvfp4: 6 * 2.0**-126}.get(type(format), 2.0**-126)
    assert error.max() <= x.double().abs().max() * (step + 2**-8) + floor


@pytest.mark.parametrize(
    ("format", "bound"),
    [(Fp8(), 0.03), (Mxfp8(), 0.03), (Nvfp4(), 0.11), (Int4(32), 0.11), (Int4(128), 0.13)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_ordinary_weights_lose_little(format, bound):
    """Root mean square error of normal weights, relative to theirs."""
    x = (torch.randn(256, 512, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()
    made = format.tensors(NAME, x)
    restored = format.restore({name.removeprefix(BASE): tensor for name, tensor in made.items()})
    assert (restored.float() - x.float()).norm() / x.float().norm() < bound


@pytest.mark.parametrize("format", FORMATS[1:], ids=label)
def test_zeros_stay_zeros(format):
    made = format.tensors(NAME, torch.zeros(128, 128))
    parts = {name.removeprefix(BASE): tensor for name, tensor in made.items()}
    assert torch.equal(format.restore(parts), torch.zeros(128, 128, dtype=torch.bfloat16))
    assert all(tensor.float().isfinite().all() for tensor in parts.values())


def test_int4_is_a_fixed_point():
    """Weights on the grid stay where they are, with the scale that they have, as training with it needs."""
    x = (torch.randn(64, 256, generator=torch.Generator().manual_seed(2))).bfloat16()
    first = Int4(32).tensors("weight", x)
    # The scale takes eight bits and 7 three: a product that float32 holds and bfloat16 may not.
    codes = first["weight_packed"].view(torch.uint8)
    values = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).float() - 8
    exact = (values.view(64, 8, 32) * first["weight_scale"].float()[:, :, None]).view(64, 256)
    again = Int4(32).tensors("weight", exact)
    assert torch.equal(again["weight_packed"], first["weight_packed"])
    assert torch.equal(again["weight_scale"], first["weight_scale"])


def test_nvfp4_refuses_an_amax_that_is_too_small():
    with pytest.raises(ValueError, match="beyond the amax given"):
        Nvfp4().tensors(NAME, torch.full((4, 16), 3.0), amax=torch.tensor(2.0))


def test_fused_tensors_share_an_amax():
    group = Nvfp4().amax_group
    layer = "model.layers.3."
    assert len({group(f"{layer}self_attn.{p}_proj.weight") for p in "qkv"}) == 1
    assert group(layer + "mlp.experts.1.gate_proj.weight") == group(layer + "mlp.experts.1.up_proj.weight")
    assert group(layer + "mlp.experts.1.gate_proj.weight") != group(layer + "mlp.experts.2.gate_proj.weight")
    assert group(layer + "self_attn.o_proj.weight") == layer + "self_attn.o_proj.weight"


@pytest.mark.parametrize("format", FORMATS, ids=label)
def test_the_stated_configuration_is_read_back(format):
    stated, selection = of_config(format.config(["lm_head", "model.layers.1.mlp.gate"]))
    assert type(stated) is type(format)
    assert vars(stated) == vars(format)
    if format.name != "bf16":
        assert selection.ignore == ("lm_head", "model.layers.1.mlp.gate")
        assert selection.style == format.ignore_style


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq"}, "'gptq' is not known; known are fp8"),
        ({"quant_method": "fp8"}, "weight_block_size None"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "quant_algo 'FP8'"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "'float-quantized'"),
    ],
)
def test_other_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        of_config(config)
