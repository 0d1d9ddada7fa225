"""Serves converted models with a real SGLang on one GPU: are the log-probabilities right, and do updates arrive?

    python benchmarks/gpu/serve_formats.py --out benchmarks/gpu/results [--formats fp8,int4] [--models qwen3_moe]

Two versions of a small random Qwen3 and of a Qwen3-MoE (widths that are multiples of 128) are converted to each
format. A BF16 server gives what to expect: log-probabilities of the BF16 weights, and of the weights restored from
each format (`verst convert --format bf16`), which a server of that format should equal but for its kernels'
arithmetic and the activations that FP8 kernels quantise as well. Then the server of the format gets the second
version, as a trainer converts and publishes it (`weights.transport: disk`), through /update_weights_from_disk. Writes
serve_formats.json; a format that SGLang refuses on this GPU (MXFP8 before Blackwell) is written down with SGLang's
words, and the exit code is 1 when a server that started was further off than `LIMITS`, or an update did not arrive.

`--cpu` serves BF16 alone, without a GPU: it tries this script, not the formats.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from verst.runtime.rollout.engine.arguments import CPU_STUBS
from verst.sync.formats import Bf16, Format, Fp8, Int4, Mxfp8, Nvfp4
from verst.sync.hf.convert import convert
from verst.sync.hf.folder import HfFolder, read_config
from verst.sync.links.engine_format import EngineFormat
from verst.sync.versions.folder import folder_of
from verst.sync.versions.sender import VersionSender

FORMATS: dict[str, Format] = {
    "bf16": Bf16(),
    "fp8": Fp8(),
    "fp8-ue8m0": Fp8(ue8m0=True),
    "mxfp8": Mxfp8(),
    "nvfp4": Nvfp4(),
    "int4": Int4(128),
    "int4-g32": Int4(32),
}
# Before Blackwell NVFP4 runs on Marlin's kernels, activations in bf16.
OPTIONS = {"nvfp4": ("--fp4-gemm-backend", "marlin", "--moe-runner-backend", "marlin")}
# Mean distance in log-probability to the BF16 server with the restored weights.
LIMITS = {
    "bf16": 0.02,
    "fp8": 0.1,
    "fp8-ue8m0": 0.1,
    "mxfp8": 0.1,
    "nvfp4": 0.05,
    "int4": 0.05,
    "int4-g32": 0.05,
}
START_S, CALL_S = 600, 300
VOCABULARY, PROMPTS, TOKENS = 2048, 8, 64


def main() -> int:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--models", default="qwen3,qwen3_moe")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    formats = ["bf16"] if options.cpu else options.formats.split(",")
    if unknown := sorted(set(formats) - FORMATS.keys()):
        parser.error(f"no formats {unknown}; there are {', '.join(FORMATS)}")
    result: dict[str, Any] = {"limits": LIMITS, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models.split(","):
            result["models"][model] = measure(Path(folder) / model, model, formats, options.cpu)
    result |= machine()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serve_formats.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    entries = [entry for found in result["models"].values() for entry in found.values()]
    return 0 if all(entry["ok"] for entry in entries if "refused" not in entry) else 1


def measure(root: Path, model: str, formats: list[str], cpu: bool) -> dict[str, Any]:
    """Per format: distances before and after the update, or SGLang's refusal."""
    for version in (1, 2):
        write_model(root / f"v{version}", model, seed=version)
        for name in formats:
            convert(root / f"v{version}", root / f"v{version}-{name}", FORMATS[name])
            convert(root / f"v{version}-{name}", root / f"v{version}-{name}-restored", Bf16())
    expected: dict[str, list[float]] = {}
    with server(root / "v1", root / "bf16.log", (), cpu) as url:
        expected["v1"] = log_probabilities(url)
        for folder in ["v2"] + [f"v{v}-{name}-restored" for name in formats for v in (1, 2)]:
            update(url, root / folder)
            expected[folder] = log_probabilities(url)
    return {name: serve(root, name, expected, cpu) for name in formats}


def serve(root: Path, name: str, expected: dict[str, list[float]], cpu: bool) -> dict[str, Any]:
    """One format: version 1, an update to version 2, and how far each is from what it should be."""
    log = root / f"{name}.log"
    try:
        with server(root / f"v1-{name}", log, OPTIONS.get(name, ()), cpu) as url:
            found = {"v1": log_probabilities(url)}
            try:
                update(url, publish(root, name))
                found["v2"] = log_probabilities(url)
            except (httpx.HTTPError, RuntimeError) as error:
                return {"ok": False, "update": str(error), **distances(name, found, expected)}
    except RuntimeError as error:
        return {"refused": str(error)}
    figures = distances(name, found, expected)
    near = all(figures[v]["to_restored"] <= LIMITS[name] for v in found)
    moved = distance(found["v1"], found["v2"])
    arrived = moved > 5 * max(figures[v]["to_restored"] for v in found)
    return {"ok": near and arrived, "between_versions": moved, **figures}


def publish(root: Path, name: str) -> Path:
    """Version 2 as the trainer sends it to an engine that was started with version 1."""
    source = HfFolder(root / "v2")
    weights = {tensor: source.whole(tensor) for tensor in source.files}
    engine = root / f"v1-{name}"
    format = EngineFormat(read_config(engine), {n: tuple(t.shape) for n, t in weights.items()})
    sender = VersionSender(root / f"{name}-versions", keep=1, format=format.quantization, companions=engine)
    sender.send(2, [format.start().feed(list(weights), list(weights.values()))])
    return folder_of(sender.root, 2)


def distances(
    name: str, found: dict[str, list[float]], expected: dict[str, list[float]]
) -> dict[str, dict[str, float]]:
    """Mean distance of each version to its restored and to its BF16 weights."""
    return {
        version: {
            "to_restored": distance(values, expected[f"{version}-{name}-restored"]),
            "to_bf16": distance(values, expected[version]),
        }
        for version, values in found.items()
    }


def distance(a: list[float], b: list[float]) -> float:
    """Mean absolute difference."""
    return round(statistics.mean(abs(x - y) for x, y in zip(a, b, strict=True)), 5)


def write_model(folder: Path, model: str, seed: int) -> None:
    """A random model in bf16 whose log-probabilities are far from uniform."""
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    moe = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": True}
    config = Qwen3Config(**common) if model == "qwen3" else Qwen3MoeConfig(**common, **moe)
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.mul_(2)
    made.save_pretrained(folder)


@contextmanager
def server(folder: Path, log: Path, options: tuple[str, ...], cpu: bool) -> Iterator[str]:
    """A running SGLang; its address. Raises RuntimeError with its last words when it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(folder), "--port", str(port)]
    command += ["--skip-tokenizer-init", "--sampling-backend", "pytorch", "--grammar-backend", "none"]
    command += ["--disable-cuda-graph", "--max-running-requests", "16", "--dtype", "bfloat16", *options]
    environment = os.environ | {"SGLANG_ENABLE_JIT_DEEPGEMM": "0", "SGLANG_IS_FLASHINFER_AVAILABLE": "false"}
    if cpu:
        command += ["--device", "cpu", "--attention-backend", "torch_native", "--mem-fraction-static", "0.3"]
        command += ["--disable-overlap-schedule", "--max-total-tokens", "4096"]
        environment |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(CPU_STUBS),
        }
        environment |= {"OMP_NUM_THREADS": "1"}
    else:
        command += ["--attention-backend", "triton", "--mem-fraction-static", "0.4"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(url, process, log)
        yield url
    finally:
        os.killpg(process.pid, 9)
        process.wait(timeout=60)


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RuntimeError with the last error in the log when the server ends or is not up in time."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    lines = log.read_text(errors="replace").splitlines()
    words = [line for line in lines if "Error" in line] or lines[-1:] or ["nothing in its log"]
    raise RuntimeError(f"did not start: {words[-1].strip()}")


def log_probabilities(url: str) -> list[float]:
    """Of all tokens of fixed prompts but their first."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, VOCABULARY, (PROMPTS, TOKENS), generator=generator).tolist()
    body = {
        "input_ids": prompts,
        "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    httpx.post(f"{url}/flush_cache", timeout=CALL_S).raise_for_status()
    answers = httpx.post(f"{url}/generate", json=body, timeout=CALL_S).raise_for_status().json()
    return [float(t[0]) for a in answers for t in a["meta_info"]["input_token_logprobs"][1:]]


def update(url: str, folder: Path) -> None:
    """Raises RuntimeError when the server does not take the weights."""
    answer = httpx.post(f"{url}/update_weights_from_disk", json={"model_path": str(folder)}, timeout=CALL_S)
    if answer.status_code != 200 or not answer.json().get("success"):
        raise RuntimeError(f"update refused with HTTP {answer.status_code}: {answer.text[:500]}")


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    names = ("torch", "sglang", "transformers", "verst")
    return {
        "machine": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "no GPU",
        "versions": {name: importlib.metadata.version(name) for name in names},
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    sys.exit(main())
