"""`verst fetch`: makes the models and prompts that the bundled recipes name."""

from __future__ import annotations

from pathlib import Path

from verst.launcher.faults import UserError, nearest

BUNDLED = ("smollm2-135m", "tiny-moe")


def fetch_bundled(model: str, dest: Path | None) -> int:
    """Makes the model folder, unless it is there. Raises UserError for a name that is not bundled."""
    if model not in BUNDLED:
        raise UserError(f"no bundled model {model!r}.{nearest(model, BUNDLED)}")
    folder = dest or Path("models") / model
    if (folder / "config.json").is_file():
        print(f"{folder} is there")
        return 0
    from verst.runtime.data.models import smollm2_135m, tiny_moe

    print(f"making {folder} …", flush=True)
    {"smollm2-135m": smollm2_135m, "tiny-moe": tiny_moe}[model](folder)
    print(f"{folder} is a Hugging Face folder")
    return 0
