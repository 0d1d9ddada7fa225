"""Reads the config.json of a model for a check that leaves a missing model to another check."""

from __future__ import annotations

from typing import Any

from verst.launcher.plan.model_source import ModelMissingError, model_description, model_folder


def description_if_any(path: str) -> dict[str, Any] | None:
    """The config.json of a model; None if there is none, or if it is no configuration.

    Raises OSError for a file that is there and cannot be read: what a check said then would be about the machine, not
    about the model, and must not be kept (`kept_answers.py`).
    """
    try:
        return model_description(path)
    except ModelMissingError as error:
        if model_folder(path) is not None and isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        return None
