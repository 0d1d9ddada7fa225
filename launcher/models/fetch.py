"""Implements `verst fetch`: makes the model folder of a bundled recipe, with the prompts to train it on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from verst.launcher.recipe.faults import UserError, nearest

BUNDLED = ("smollm2-135m", "tiny-moe")


def fetch_bundled(model: str, dest: Path | None) -> int:
    """Makes the model folder unless it exists, and writes the prompts. Returns the exit code.

    Raises UserError for a name that is not bundled, and for a model that cannot be downloaded.
    """
    if model not in BUNDLED:
        raise UserError(f"no bundled model {model!r}.{nearest(model, BUNDLED)}")
    folder = dest or Path("models") / model
    from verst.runtime.data import models, tasks

    make: dict[str, Callable[[Path], Path]] = {
        "smollm2-135m": models.smollm2_135m,
        "tiny-moe": models.tiny_moe,
    }
    write: dict[str, Callable[[Path], Path]] = {"smollm2-135m": tasks.addition, "tiny-moe": tasks.reversal}
    if (folder / "config.json").is_file():
        print(f"{folder} already exists")
    else:
        print(f"making {folder} …", flush=True)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            make[model](partial)
        except models.DownloadError as error:
            raise UserError(
                f"{model} could not be fetched: {error}\nWithout a network, copy the folder from a machine that has one"
            ) from error
        _move_files(partial, folder)
    # Writing the prompts takes a second and gives the same files every time.
    write[model](folder)
    print(f"{folder} has model, tokenizer and {', '.join(sorted(p.name for p in folder.glob('*.jsonl')))}")
    return 0


def _move_files(partial: Path, folder: Path) -> None:
    """Moves the files of a model to its folder, config.json last.

    A folder with a config.json counts as a model, so an interrupted move leaves none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(folder / file.name)
    partial.rmdir()
