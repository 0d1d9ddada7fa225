"""An export from a checkpoint holds one file of the folder in memory, however large the model is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sync.tiny_models import write_model
from tests.sync.world import run_world
from verst.sync.hf.folder import HfFolder

FILE_MB = 8
SIZES = {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 64}

# Prints by how many MB the memory in use has grown at its most. The small model brings in what is imported.
_MEASURE = """
import sys
from pathlib import Path
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.trainer.checkpoint.export import export_checkpoint
root = Path(sys.argv[1])

def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

before = 0
for name in ("small", "large"):
    model = ModelConfig(path=str(root / name), dtype="float32")
    saved = root / f"{name}-saved" / "step-000001"
    export_checkpoint(saved, model, root / f"{name}-out", shard_bytes=int(sys.argv[2]) << 20)
    grown, before = most() - before, most()
print(grown)
"""


def _write(rank: int, world: int, store: str, model: Path, checkpoint: Path) -> None:
    import torch.distributed as dist

    from verst.runtime.algorithms.config import AlgorithmConfig
    from verst.runtime.messages.model_config import ModelConfig
    from verst.runtime.trainer.checkpoint.checkpoint import Checkpointer
    from verst.runtime.trainer.config import CheckpointConfig, TrainerConfig
    from verst.runtime.trainer.parallel import Parallel
    from verst.runtime.trainer.trainer import Trainer

    parallel = Parallel(rank, world, dist.FileStore(store, world), timeout_s=100)
    algorithm = AlgorithmConfig(steps=1, prompts_per_step=1, samples_per_prompt=2)
    config = ModelConfig(path=str(model), dtype="float32")
    trainer = Trainer(config, TrainerConfig(), algorithm, parallel, train_steps=1)
    Checkpointer(trainer, CheckpointConfig()).save(checkpoint, 1, b"")
    trainer.close()


@pytest.mark.long
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    for name, layers in (("small", 2), ("large", 16)):
        write_model(tmp_path / name, "qwen3", **SIZES, num_hidden_layers=layers)
        run_world(1, _write, tmp_path / name, tmp_path / f"{name}-saved" / "step-000001")
    model_mb = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors")) >> 20
    assert model_mb > 15 * FILE_MB
    done = subprocess.run(
        [sys.executable, "-P", "-c", _MEASURE, str(tmp_path), str(FILE_MB)],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    # A file, the tensors that it is made of, and what the reader keeps of the stored ones.
    assert float(done.stdout) < 4 * FILE_MB
    assert len(set(HfFolder(tmp_path / "large-out").files.values())) > 10
