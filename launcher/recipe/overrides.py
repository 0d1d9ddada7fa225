"""Reads overrides as people write them on a command line: `a.dotted.key=value`.

Written otherwise (with dashes in front, or with a space in place of `=`), they are refused with the right form.
"""

from __future__ import annotations

from collections.abc import Iterable

from verst.launcher.recipe.faults import Fault

Override = tuple[str, str]  # the dotted key, and its value as YAML


def split_overrides(texts: Iterable[str]) -> tuple[list[Override], list[Fault]]:
    """Splits overrides at their `=`. Returns those that have the right form, and a fault for each other."""
    waiting, found, faults = list(texts), [], []
    while waiting:
        text = waiting.pop(0)
        key, equals, value = text.lstrip("-").partition("=")
        if text.startswith("-") or not equals:
            # What follows is then the value of this one: `--trainer.megatron.lr 1e-6`.
            if not equals and waiting and "=" not in waiting[0] and not waiting[0].startswith("-"):
                value = waiting.pop(0)
            faults.append(Fault("", _wrong(text, key, value), "command line"))
        elif not all(key.split(".")):
            faults.append(
                Fault("", f"override {text!r} must have the form a.dotted.key=value", "command line")
            )
        else:
            found.append((key, value))
    return found, faults


def _wrong(text: str, key: str, value: str) -> str:
    right = f"{key}={value or 'VALUE'}"
    if text.startswith("-") and "." in key:
        return f"override {text!r} must have no dashes in front: `{right}`"
    if text.startswith("-"):
        return f"{text!r} is no option of this command (`-h` lists them); an override has no dashes in front: `{right}`"
    return f"override {text!r} must have the form a.dotted.key=value: `{right}`"
