"""GPU figures: what NVML says as it is kept, which process has which, and a node whose driver does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pynvml
import pytest

from verst.runtime.node.gpu_use import ROLE, GpuUse, NodeUse, in_figures, of_process, one_gpu, use_path
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Plan, Process

GIB = 1 << 30


def gpu(name: str, used: int, busy: float = 0.0) -> GpuUse:
    return GpuUse(name=name, used=used * GIB, total=80 * GIB, busy=busy)


def test_nvmls_structures_are_read_as_bytes_and_shares() -> None:
    # As an H100 answered while it trained.
    memory = pynvml.c_nvmlMemory_t(total=85520809984, free=20111163392, used=65409646592)
    rates = pynvml.c_nvmlUtilization_t(gpu=97, memory=41)
    use = one_gpu("3", memory, rates)
    assert use == GpuUse(name="3", used=65409646592, total=85520809984, busy=0.97)
    assert msgspec.json.decode(msgspec.json.encode(NodeUse(gpus=[use])), type=NodeUse).gpus == [use]


def test_a_process_has_the_gpus_of_its_places_or_of_its_names() -> None:
    node = NodeUse(gpus=[gpu("4", 10), gpu("5", 20, 0.5), gpu("6", 30, 1.0)])
    on_slurm = Process(role="rollout", index=0, argv=[], gpus=[1, 2], env={"CUDA_VISIBLE_DEVICES": ""})
    here = Process(role="trainer", index=0, argv=[], env={"CUDA_VISIBLE_DEVICES": "4"})
    without = Process(role="store", index=0, argv=[], env={"CUDA_VISIBLE_DEVICES": ""})
    assert in_figures(of_process(on_slurm, node)) == (50 * GIB, 160 * GIB, 0.75)
    assert of_process(here, node) == [node.gpus[0]]
    assert in_figures(of_process(without, node)) is None


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver that answers")
def test_where_the_driver_does_not_answer_the_run_goes_on_without_the_figures(folder: RunFolder) -> None:
    argv = [sys.executable, "-m", "verst.runtime.node.gpu_use", "--run", str(folder.root), "--index", "0"]
    meter = Process(role=ROLE, index=0, argv=argv, env={"CUDA_VISIBLE_DEVICES": "0"}, on_exit="ignored")
    log = f"{folder.root}/logs/life-0/trainer/0/{ROLE}-0.log"
    waits = f"import time\nwhile 'no longer measured' not in open({log!r}).read(): time.sleep(0.1)"
    first = Process(role="controller", index=0, argv=[sys.executable, "-c", waits], on_exit="ends_run")
    Plan(name="test", groups={"trainer": [Node(processes=[meter, first])]}).write(folder.plan)
    agent = [
        sys.executable,
        "-m",
        "verst.runtime.node.agent",
        "--run",
        str(folder.root),
        "--group",
        "trainer",
    ]
    done = subprocess.run(
        [*agent, "--node", "0", "--generation", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "the use of the GPUs is no longer measured: NVML Shared Library Not Found" in Path(log).read_text()
    assert not use_path(folder, "trainer", 0).exists()
