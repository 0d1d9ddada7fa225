"""Finds a recipe's model: a local Hugging Face folder, or a hub id, which is downloaded to one.

Compute nodes have no internet, so the launcher downloads the model before anything starts.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from verst.launcher.recipe.faults import UserError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_HUB_DEADLINE_S = 10.0


class ModelMissingError(UserError):
    """The model was not found. The message says where it was looked for and what would help."""


def model_folder(path: str) -> Path | None:
    """The local folder at `path`; None if there is none with a config.json."""
    folder = Path(path).expanduser().absolute()
    return folder if (folder / "config.json").is_file() else None


def model_description(path: str) -> dict[str, Any]:
    """Reads the model's config.json from its folder or from the hub. Raises ModelMissingError."""
    folder = model_folder(path)
    file = (
        folder / "config.json"
        if folder is not None
        else _from_hub(path, only_description=True) / "config.json"
    )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelMissingError(f"{file} cannot be read as a model's config.json: {error}") from error
    if not isinstance(description, dict):
        raise ModelMissingError(f"{file} holds a {type(description).__name__}, must be a mapping")
    return description


def fetch_model(path: str) -> Path:
    """The model's local folder. A hub id is downloaded first. Raises ModelMissingError."""
    return model_folder(path) or _from_hub(path, only_description=False)


def is_no_hub_id(path: str) -> bool:
    """Whether `path` can only be a folder: it is not written like a hub id, or the folder around it exists."""
    return not _HUB_ID.match(path) or Path(path).expanduser().parent.is_dir() or bool(_advice(path))


def _from_hub(path: str, only_description: bool) -> Path:
    folder = Path(path).expanduser()
    if folder.exists():
        raise ModelMissingError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    if is_no_hub_id(path):
        raise ModelMissingError(f"there is no folder {folder.absolute()}{_advice(path)}")
    from huggingface_hub import constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # Without a network the hub's client retries for half a minute, while its cache answers at once.
    offline = constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT)
    try:
        if only_description:
            return Path(
                hf_hub_download(path, "config.json", etag_timeout=_HUB_DEADLINE_S, local_files_only=offline)
            ).parent
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]
        return Path(
            snapshot_download(
                path, allow_patterns=patterns, etag_timeout=_HUB_DEADLINE_S, local_files_only=offline
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = "the hub cannot be reached, and its local cache does not have the model" if offline else said
        raise ModelMissingError(
            f"there is no folder {folder.absolute()}, and the model cannot be fetched from the Hugging Face hub "
            f"({reason}){_advice(path)}"
        ) from error


def _reachable(endpoint: str) -> bool:
    """Whether the hub accepts connections. With a proxy configured, it is assumed to."""
    address = urlsplit(endpoint)
    if urllib.request.getproxies():
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname, port), timeout=_HUB_DEADLINE_S):
            return True
    except OSError:
        return False


def _advice(path: str) -> str:
    name = Path(path).name
    known = ("smollm2-135m", "tiny-moe")
    return f"; make it with `verst fetch {name} {path}`" if name in known else ""


def is_mixture_of_experts(description: dict[str, Any]) -> bool:
    """Whether a config.json describes a mixture of experts, by the keys that Hugging Face's model families use."""
    keys = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any(int(description.get(key) or 0) > 1 for key in keys)


def quantisation(description: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The quantisation settings in a config.json; empty for weights that are not quantised."""
    found = (description or {}).get("quantization_config") or (description or {}).get("compression_config")
    return found or {}
