"""A recipe's SGLang arguments are checked by SGLang's own parser, all faults at once, without a GPU."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine import arguments, start
from verst.runtime.rollout.engine.arguments import (
    check,
    data_parallel_size,
    engine_environment,
    server_arguments,
    tensor_parallel_size,
)


def test_good_arguments_have_no_faults() -> None:
    good = {
        "tp-size": 2,
        "mem_fraction_static": 0.8,
        "disable-cuda-graph": True,
        "cuda-graph-bs-decode": [1, 2, 4],
    }
    assert check(good) == []


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("tp-sise", 2, "tp-sise: SGLang has no such argument; did you mean tp-size?"),
        ("tp", 2, "tp: SGLang has no such argument; did you mean tp-size?"),
        (
            "gpu_memory_utilization",
            0.5,
            "gpu_memory_utilization: SGLang has no such argument; did you mean mem-",
        ),
        ("max-num-seqs", 8, "max-num-seqs: SGLang has no such argument; did you mean max-running-requests?"),
        ("mem-fraction-static", "lots", "mem-fraction-static: invalid float value: 'lots'"),
        ("tp-size", 1.5, "tp-size: invalid int value: '1.5'"),
        ("load-format", "int3", "load-format: invalid choice: 'int3'"),
        ("disable-cuda-graph", 1, "disable-cuda-graph: 1 is wrong, it takes true or false"),
        ("tp-size", True, "tp-size: True is wrong, it takes a value, not true or false"),
        ("model_path", "x", "model_path: set by Verst, a recipe cannot change it"),
        ("api-key", "x", "api-key: set by Verst"),
        (
            "json-model-override-args",
            '{"rope_theta": 5e5}',
            "json-model-override-args: the engines alone would follow it, and compute another model than is trained: ",
        ),
        ("quantization", "fp8", "quantization: the engines alone"),
        ("dtype", "float16", "dtype: engines and trainer have the same type: set model.dtype"),
        ("enable_eplb", True, "enable_eplb: experts that move between ranks"),
        ("delete-ckpt-after-loading", True, "delete-ckpt-after-loading: it deletes the model folder"),
        ("load-format", "dummy", "load-format: dummy leaves out"),
    ],
)
def test_each_fault_is_named(name: str, value: Any, fault: str) -> None:
    (found,) = check({"context-length": 512, name: value})
    assert found.startswith(fault)


def test_what_is_refused_is_sglangs_and_may_be_switched_off() -> None:
    assert arguments._REFUSED.keys() <= arguments._actions().keys()
    assert check({"enable-eplb": False, "load-format": "auto"}) == []


def test_all_faults_come_at_once() -> None:
    assert len(check({"tp-sise": 2, "load-format": "int3", "host": "0.0.0.0"})) == 3


def test_the_recipe_wins_and_the_server_stays_on_loopback() -> None:
    config = RolloutConfig(
        reward="a:b", concurrency=7, sglang={"max_running_requests": 3, "tp": 2, "log-requests": False}
    )
    model = ModelConfig(path="/models/x")
    argv = server_arguments(model, config, device="cpu", host="127.0.0.1", port=5, routing=True, seed=3)
    pairs = dict(itertools.pairwise(argv))
    assert pairs["--max-running-requests"] == "3"
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--dtype"] == "bfloat16"
    assert "--enable-return-routed-experts" in argv
    assert "--log-requests" not in argv
    assert tensor_parallel_size(config) == 2
    assert "--nccl-port" not in argv


def test_the_ranks_of_an_engine_meet_where_no_outgoing_connection_can_be(monkeypatch: Any) -> None:
    """SGLang would take an ephemeral port, which another process may have until it is opened."""
    asked: list[list[str]] = []

    async def started(argv: list[str], **_: Any) -> None:
        asked.append(argv)

    monkeypatch.setattr(start.EngineServer, "start", started)
    monkeypatch.setattr(start, "_require_folder", lambda path: None)
    for sglang, replicas in (({}, 1), ({"dp-size": 2}, 2), ({"nccl-port": 7}, 1)):
        config = RolloutConfig(reward="a:b", sglang=sglang)
        assert data_parallel_size(config) == replicas
        asyncio.run(
            start.start_server(
                ModelConfig(path="/models/x"),
                config,
                log=Path("x"),
                routing=False,
                seed=3,
                device="cpu",
                threads=1,
                host="127.0.0.1",
                port=5,
                key="k",
                meeting=None,
            )
        )
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    outside = range(10_240, first_ephemeral) if first_ephemeral > 12_000 else range(61_000, 65_536)
    ports = [dict(itertools.pairwise(argv)).get("--nccl-port") for argv in asked]
    assert int(ports[0] or 0) in outside
    assert ports[1:] == [None, "7"], "replicas need a port each; the recipe's own wins"


def test_sparse_attention_is_asked_for_positions() -> None:
    """On a GPU; fused, SGLang's indexer gives slots of its cache."""
    config, model = RolloutConfig(reward="a:b"), ModelConfig(path="/models/x")
    about: Any = {"device": "cuda", "host": "127.0.0.1", "port": 5, "routing": True, "seed": 3}
    assert "--enable-return-indexer-topk" in server_arguments(model, config, **about, selection=True)
    assert engine_environment("cuda", 1, config, selection=True)["SGLANG_DSA_FUSE_TOPK"] == "false"
    assert "--enable-return-indexer-topk" not in server_arguments(model, config, **about)
    assert "SGLANG_DSA_FUSE_TOPK" not in engine_environment("cuda", 1, config)
    (fault,) = check({"enable-return-indexer-topk": True})
    assert fault == "enable-return-indexer-topk: set by Verst, a recipe cannot change it"
