"""A folder with a sound recipe, in which the checks' tests work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import write_recipe


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    return tmp_path
