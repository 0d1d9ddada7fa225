"""Properties that hold for drawn examples: few of them by default, many in the long tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy


def examples(
    *strategies: SearchStrategy[Any], few: int, many: int
) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Decorator of a test that gets a value of each strategy."""

    def decorate(test: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize(
            "count", [few, pytest.param(many, marks=pytest.mark.long)], ids=["few", "many"]
        )
        def run(count: int) -> None:
            settings(max_examples=count)(given(*strategies)(test))()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate
