"""A fault that would come again, in the controller or on a rank, ends the run for good, with its own words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from verst.runtime.actors import RemoteError
from verst.runtime.controller.background import Background
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.values import advantages_of
from verst.runtime.messages.sample import GroupMeta

SAID = "loss function 'm:f', step 4: returned a loss of shape [1] for 8 tokens"


def one_short(groups: Sequence[GroupMeta]) -> list[list[float]]:
    return [list(group.rewards[1:]) for group in groups]


def ended(error: Exception) -> ev.Finish:
    async def run() -> ev.Finish:
        events: asyncio.Queue[ev.Event | ev.Finish] = asyncio.Queue()

        async def work() -> None:
            raise error

        Background(events.put_nowait).start(work(), "step 4")
        finish = await asyncio.wait_for(events.get(), 5)
        assert isinstance(finish, ev.Finish)
        return finish

    return asyncio.run(run())


@pytest.mark.parametrize(
    "error",
    [
        HookError(SAID),
        RemoteError("trainer-3.train", "HookError", SAID, "Traceback"),
        RemoteError("trainer-3.train", "EngineDisagreesError", SAID, "Traceback"),
    ],
)
def test_it_is_not_tried_again(error: Exception) -> None:
    assert ended(error) == ev.Finish(ok=False, reason=f"step 4 failed: {SAID}", hopeless=True)


def test_other_errors_may_be_tried_again() -> None:
    assert ended(RemoteError("trainer-3.train", "ValueError", "x", "Traceback")).hopeless is False


def test_advantages_are_checked_for_each_group() -> None:
    hook = Hook("advantage function", f"{__name__}:one_short", timeout_s=5)
    groups = [SimpleNamespace(id=3, rewards=[1.0, 0.0])]
    with pytest.raises(HookError) as caught:
        asyncio.run(hook("step 4", groups, check=advantages_of(groups)))
    assert str(caught.value) == (
        f"advantage function '{__name__}:one_short', step 4: returned 1 value for the 2 rewards of group 3: [0.0]"
    )
