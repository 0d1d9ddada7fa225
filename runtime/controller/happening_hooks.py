"""Tells the functions of the recipe's `hooks` section what happens, each in a thread and with a deadline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verst.runtime.hooks.config import HooksConfig
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.happenings import StepEnd
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.values import figures_of
from verst.runtime.run.folder import RunFolder


class HappeningHooks:
    """The functions by their key. Raises HookError if one cannot be loaded."""

    def __init__(self, config: HooksConfig, folder: RunFolder) -> None:
        self._folder = folder
        self._warns = config.failure == "warn"
        self._hooks = {
            name: Hook(f"hook {name}", path, timeout_s=config.timeout_s)
            for name, path in config.on_controller().items()
            if path is not None
        }

    async def tell(self, name: str, place: str, happening: Any) -> None:
        """Calls the function of this key, if there is one. `place` names the occasion in messages: "step 3".

        Raises HookError if it fails, unless the recipe says to warn.
        """
        if (hook := self._hooks.get(name)) is not None:
            try:
                await hook(place, happening, check=lambda value: None)
            except HookError as error:
                self._failed(name, error)

    async def with_figures(self, step: StepEnd) -> dict[str, Any]:
        """The step's line, with the figures of the recipe's own function in it, as `{"own": {name: value}}`.

        Raises HookError if the function fails, or returns a figure of a name that is taken, unless the recipe says to
        warn.
        """
        line = dict(step.line)
        hook = self._hooks.get("metrics")
        if hook is None:
            return line
        taken: Mapping[str, float] = line.get("own", {})
        try:
            line["own"] = {**taken, **await hook(f"step {step.step}", step, check=figures_of(taken))}
        except HookError as error:
            self._failed("metrics", error)
        return line

    def _failed(self, name: str, error: HookError) -> None:
        if not self._warns:
            raise error
        self._folder.event("hook_failed", message=f"hooks.{name} failed, and the run goes on: {error}")
