"""What the documentation shows is true: its examples are recipes, its links lead somewhere, its hooks exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from verst.launcher.check.hooks import hook_fault
from verst.launcher.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readmes_recipe_fits_the_schema(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "recipe.yaml"
    path.write_text(example)
    recipe = load_recipe(path)
    assert recipe.trainer.megatron["lr"] == 1e-6
    assert recipe.rollout.sglang["tp-size"] == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:launcher|runtime|sync|recipes|docs|tests)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_files_on_the_map_are_there():
    text = (ROOT / "docs/architecture.md").read_text()
    for section, table in re.findall(r"### `(\w+)/`\n\n(.*?)(?=\n##|\Z)", text, re.DOTALL):
        for row in table.splitlines()[2:]:
            for name in re.findall(r"`([\w/]+(?:\.py|/))`", row.split("|")[1]):
                assert (ROOT / section / name).exists(), f"{section}/{name}"


def test_the_hooks_named_in_the_docs_exist():
    text = (ROOT / "docs/hooks.md").read_text()
    paths = re.findall(r"`(verst[\w.]+:\w+)`", text)
    assert len(paths) >= 4
    assert [fault for path in paths if (fault := hook_fault(path, None))] == []
