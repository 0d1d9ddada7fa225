"""SGLang's arguments: Verst derives some, the recipe gives others, and SGLang's own parser checks them."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import io
import os
import warnings
from pathlib import Path
from typing import Any, NoReturn

from verst.runtime.messages.model_config import ArgumentValue, ModelConfig
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine.client import SERVER_KEEP_ALIVE_S

CPU_STUBS = Path(__file__).parents[1] / "inside_sglang" / "cpu_stubs"

# A recipe cannot set these: Verst sets them, from other parts of the recipe or for safety.
_OURS = frozenset(
    [
        "model-path",
        "model",
        "host",
        "port",
        "device",
        "api-key",
        "admin-api-key",
        "weight-version",
        "config",
        "nnodes",
        "node-rank",
        "dist-init-addr",
        "enable-return-routed-experts",
        "enable-return-indexer-topk",
        "enable-memory-saver",
    ]
)

# With these the engines would compute another model than the one that is trained, or lose it.
_IN_ENGINES_ALONE = "the engines alone would follow it, and compute another model than is trained: "
_IN_FOLDER = _IN_ENGINES_ALONE + "change config.json of model.path"
_FORMAT = (
    _IN_ENGINES_ALONE + "for engines in another format set rollout.model_path to a folder of `verst convert`"
)
_REFUSED = {
    "json-model-override-args": _IN_FOLDER,
    "decrypted-config-file": _IN_FOLDER,
    "model-config-parser": _IN_FOLDER,
    "forward-hooks": _IN_ENGINES_ALONE + "leave it out",
    "enable-lora": _IN_ENGINES_ALONE + "merge the adapter into model.path",
    "lora-paths": _IN_ENGINES_ALONE + "merge the adapter into model.path",
    "quantization": _FORMAT,
    "torchao-config": _FORMAT,
    "modelopt-quant": _FORMAT,
    "quantize-and-serve": _FORMAT,
    "rl-quant-profile": _FORMAT,
    "dtype": "engines and trainer have the same type: set model.dtype",
    "tokenizer-path": "engines and trainer have the same tokenizer, that of model.path",
    "enable-eplb": "experts that move between ranks would get the weights of others in the next weight round",
    "delete-ckpt-after-loading": "it deletes the model folder, which every further start reads",
    "allow-auto-truncate": "it cuts prompts off without a word: set data.train.max_prompt_tokens",
    "chat-template": "has no effect: Verst renders prompts itself; see chat_template_file in the data section",
    "hf-chat-template-name": "has no effect: Verst renders prompts itself; see chat_template_file in the data section",
    "completion-template": "has no effect: Verst renders prompts itself",
}

# Short names, and those of other engines.
_OTHER_NAMES = {
    "tp": "tp-size",
    "dp": "dp-size",
    "pp": "pp-size",
    "ep": "ep-size",
    "tensor-parallel": "tp-size",
    "gpu-memory-utilization": "mem-fraction-static",
    "max-model-len": "context-length",
    "max-num-seqs": "max-running-requests",
    "max-num-batched-tokens": "chunked-prefill-size",
    "enforce-eager": "disable-cuda-graph",
}


def server_arguments(
    model: ModelConfig,
    config: RolloutConfig,
    *,
    device: str,
    host: str,
    port: int,
    routing: bool,
    seed: int,
    nccl_port: int | None = None,
    meeting: str | None = None,
    part: int = 0,
    shares_gpus: bool = False,
    selection: bool = False,
) -> list[str]:
    """The server's argv for `device` "cpu" or "cuda". The recipe's values override Verst's defaults.

    nccl_port: where the engine's ranks find each other, on one node; None: SGLang finds a port, which another process
        may take until it is opened.
    meeting: the address where the parts of an engine over several nodes find each other; `part` is the number of this
        part.
    shares_gpus: engine and trainer use the same GPUs in turns.
    routing: return the routed experts. selection: return the choices of sparse attention.
    """
    arguments: dict[str, ArgumentValue] = {
        "model-path": config.model_path or model.path,
        "host": host,
        "port": port,
        "device": device,
        "dtype": model.dtype,
        "weight-version": "0",
        "random-seed": seed,
        "max-running-requests": config.concurrency,
        "sampling-backend": "pytorch",  # the only one with a seed per request
        "skip-server-warmup": True,
        "log-level-http": "warning",
        "enable-return-routed-experts": routing,
        "enable-return-indexer-topk": selection,
    }
    if nccl_port is not None:
        arguments["nccl-port"] = nccl_port
    if device == "cpu":
        arguments |= {
            "attention-backend": "torch_native",
            "disable-cuda-graph": True,
            "disable-overlap-schedule": True,
            "disable-custom-all-reduce": True,
            "sleep-on-idle": True,  # otherwise its idle loop takes a core from the trainer
            "mem-fraction-static": 0.3,
            "max-total-tokens": 16384,
        }
    elif shares_gpus:
        # Leaves room for the trainer's CUDA context and NCCL's buffers, which stay on the GPU.
        arguments |= {"enable-memory-saver": True, "mem-fraction-static": 0.7}
    arguments |= {_dashed(name): value for name, value in config.sglang.items()}
    if meeting is not None:
        arguments |= {"nnodes": config.nodes_per_engine, "node-rank": part, "dist-init-addr": meeting}
    return [word for name, value in arguments.items() for word in _words(name, value)]


def engine_environment(
    device: str, threads: int, config: RolloutConfig, selection: bool = False
) -> dict[str, str]:
    """The environment variables of the engine's processes, in addition to the worker's own."""
    environment = {
        "SGLANG_TIMEOUT_KEEP_ALIVE": str(SERVER_KEEP_ALIVE_S),
        # Log-probabilities at the temperature of the sampling, as the trainer computes them. A user's shell may say
        # otherwise.
        "SGLANG_RETURN_ORIGINAL_LOGPROB": "false",
    }
    if device != "cpu":
        # The fused indexer of sparse attention returns slots of the cache; replay needs positions.
        return environment | ({"SGLANG_DSA_FUSE_TOPK": "false"} if selection else {})
    ranks = tensor_parallel_size(config)
    environment |= {
        "SGLANG_USE_CPU_ENGINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CPU_STUBS), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # its threads, started on import, would keep the process from being forked
        "TORCHDYNAMO_DISABLE": "1",  # without a GPU, compiling costs more time than it saves
    }
    if ranks > 1:  # one entry for each rank of the engine, on whatever node
        cores = sorted(os.sched_getaffinity(0))
        environment["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(
            str(cores[rank % len(cores)]) for rank in range(ranks)
        )
    return environment


def tensor_parallel_size(config: RolloutConfig) -> int:
    """The number of ranks of one engine: its tensor-parallel size."""
    return _size(config, "tp-size", "tensor-parallel-size", "tp")


def data_parallel_size(config: RolloutConfig) -> int:
    """The number of replicas in one engine: its data-parallel size."""
    return _size(config, "dp-size", "data-parallel-size", "dp")


def _size(config: RolloutConfig, *names: str) -> int:
    given = [value for name, value in config.sglang.items() if _dashed(name) in names]
    return int(given[0]) if given else 1  # type: ignore[arg-type]


def check(sglang: dict[str, ArgumentValue]) -> list[str]:
    """Lists every fault in a recipe's `rollout.sglang`; each begins with the argument's name. Needs no GPU."""
    actions = _actions()
    faults = []
    for name, value in sglang.items():
        flag = _dashed(name)
        if flag in _OURS:
            faults.append(f"{name}: set by Verst, a recipe cannot change it")
        elif flag in _REFUSED and value is not False:
            faults.append(f"{name}: {_REFUSED[flag]}")
        elif flag == "load-format" and value == "dummy":
            faults.append(
                f"{name}: dummy leaves out the weights that are never sent, such as a router's bias"
            )
        elif flag not in actions:
            near = (
                [_OTHER_NAMES[flag]]
                if flag in _OTHER_NAMES
                else difflib.get_close_matches(flag, actions, n=1)
            )
            faults.append(
                f"{name}: SGLang has no such argument" + (f"; did you mean {near[0]}?" if near else "")
            )
        elif (actions[flag].nargs == 0) != isinstance(value, bool):
            expected = "true or false" if actions[flag].nargs == 0 else "a value, not true or false"
            faults.append(f"{name}: {value!r} is wrong, it takes {expected}")
        elif fault := _parse_fault(flag, value):
            faults.append(f"{name}: {fault}")
    return faults


def _parse_fault(flag: str, value: ArgumentValue) -> str | None:
    try:
        _parser().parse_args(["--model-path", "any", *_words(flag, value)])
    except _ParseError as error:
        return str(error)
    return None


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _words(name: str, value: ArgumentValue) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


class _ParseError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _ParseError(message.removeprefix("argument ").split(": ", 1)[-1])


@functools.cache
def _parser() -> argparse.ArgumentParser:
    # Importing SGLang prints advice on further packages, which is of no use here.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from sglang.srt.server_args import ServerArgs
    parser = _Parser(prog="sglang", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    return parser


def _actions() -> dict[str, Any]:
    return {
        option.removeprefix("--"): action
        for action in _parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    }
