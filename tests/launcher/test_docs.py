"""What the documentation shows is true: its examples are recipes, its links lead somewhere, its hooks exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from verst.launcher.check.hooks.bundled import bundled_hooks
from verst.launcher.check.hooks.hooks import hook_fault
from verst.launcher.check.step import step_faults
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readmes_recipe_fits_the_schema(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "recipe.yaml"
    path.write_text(example)
    recipe = load_recipe(path)
    assert recipe.trainer.megatron["lr"] == 1e-6
    assert recipe.rollout.sglang["tp-size"] == 2


_NAMED = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/algorithms.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("snippet", _NAMED)
def test_each_named_algorithm_is_a_recipe_that_a_plan_takes(snippet, tmp_path):
    keys = yaml.safe_load(snippet)
    base = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text())
    del base["algorithm"]["skip_zero_advantage"]  # it does not go with a KL term
    for section, values in keys.items():
        base[section] = {**base[section], **values}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(base))
    recipe = load_recipe(path)
    assert list(step_faults(recipe, None)) == []
    made = recipe.algorithm.model_dump(exclude_unset=True)
    assert {key: made[key] for key in keys["algorithm"]} == keys["algorithm"]
    for path in (recipe.algorithm.advantage, recipe.algorithm.loss, recipe.algorithm.kl):
        assert hook_fault(path, None) is None


def test_every_bundled_loss_and_advantage_has_a_named_algorithm():
    text = "".join(_NAMED)
    variants = {"group_normalised_sample"}
    bundled = {**bundled_hooks("algorithm.loss"), **bundled_hooks("algorithm.advantage")}
    assert {name for name, path in bundled.items() if path not in text} == variants


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:launcher|runtime|sync|recipes|docs|tests)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_map_names_every_room_and_no_file_that_is_gone():
    text = (ROOT / "docs/architecture.md").read_text()
    folders = "launcher|runtime|sync|slurm|recipes|tests|benchmarks|examples"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*)`", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    inits = [*ROOT.glob("launcher/*/__init__.py"), *ROOT.glob("sync/*/__init__.py")]
    inits += [*ROOT.glob("runtime/*/__init__.py"), *ROOT.glob("runtime/*/*/__init__.py")]
    rooms = {f"{init.parent.relative_to(ROOT)}/" for init in inits}
    assert sorted(rooms - named) == []


def test_what_is_ours_in_coming_from_exists():
    named = 0
    for row in (ROOT / "docs/coming-from.md").read_text().splitlines():
        if not row.startswith("| "):
            continue
        ours = row.rsplit("|", 2)[1]
        for path in re.findall(r"`(verst\.[\w.]+:\w+)`", ours.replace(": verst.", ": `verst.")):
            assert hook_fault(path, None) is None, path
        for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)(?:: [^`]*)?`", ours):
            if key.split(".")[0] in Recipe.model_fields:
                assert is_key(Recipe, key.split(".")), key
                named += 1
    assert named > 100


def is_key(section: Any, names: list[str]) -> bool:
    """Whether a recipe can have the key `names`, below `section`, a type annotation."""
    if not names or get_origin(section) is dict:
        return True
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return any(is_key(one, names) for one in get_args(section))
    fields = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
    return names[0] in fields and is_key(fields[names[0]], names[1:])


def test_the_hooks_named_in_the_docs_exist():
    text = (ROOT / "docs/hooks.md").read_text()
    paths = re.findall(r"`(verst[\w.]+:\w+)`", text)
    assert len(paths) >= 4
    faults = [fault for path in paths if (fault := hook_fault(path, None))]
    # The package of a bundled reward may be an extra that is not installed.
    assert [fault for fault in faults if "which is not installed" not in fault] == []


OURS = [page for page in PAGES if page.name != "coming-from.md"]  # it also names keys of other systems


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_the_keys_named_in_the_docs_exist(page):
    keys = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", page.read_text()))
    ours = {key for key in keys if key.split(".")[0] in Recipe.model_fields and not key.endswith(".jsonl")}
    assert [key for key in sorted(ours) if not is_key(Recipe, key.split("."))] == []


def test_the_site_builds_and_every_link_and_anchor_leads_somewhere(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = "".join(page.read_text() for page in (tmp_path / "site").glob("*.html"))
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]*', pages)
    assert loaded == [], "the site must load nothing from elsewhere"
