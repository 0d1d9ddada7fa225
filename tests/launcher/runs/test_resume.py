"""A resumed run says what changed, refuses what makes no sense, and trains on no groups of another recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from tests.launcher.recipes_for_tests import LLAMA, write_recipe
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.faults import RecipeError, UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.prepare import prepare_resume, prepare_run
from verst.launcher.runs.resume import Change, carry_out, is_innocent, review
from verst.runtime.run import checkpoints
from verst.runtime.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> RunFolder:
    """A run of three steps, stopped after its second, with a checkpoint and a journalled group."""
    monkeypatch.chdir(tmp_path)
    made, _ = prepare_run(load_recipe(write_recipe(tmp_path)), Machine(cores=2))
    made.start_generation()
    checkpoint = made.checkpoints / "step-000002"
    checkpoint.mkdir()
    manifest = checkpoints.Manifest(
        format=checkpoints.FORMAT, model="m", version=2, optimizer_steps=2, scheduler_steps=2, parallel={}
    )
    (checkpoint / checkpoints.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    (made.samples / "shard-0").mkdir()
    (made.samples / "shard-0/000000-000000.journal").write_bytes(b"x")
    return made


def journalled(folder: RunFolder) -> bool:
    return any(folder.samples.glob("*/*.journal"))


def test_what_changed_is_told_and_kept(folder, capsys):
    overrides = ["algorithm.steps=6", "checkpoint.keep=5"]
    found = review(folder, overrides)
    carry_out(folder, found)
    told = "changed since the last life: algorithm.steps: 3 -> 6; checkpoint.keep: 2 -> 5"
    assert capsys.readouterr().out == f"{told}\n"
    (event,) = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert (event["kind"], event["message"]) == ("recipe_changed", told)
    assert journalled(folder), "more steps do not make the groups another's"
    prepare_resume(folder, load_recipe(folder.recipe, overrides), Machine(cores=2))
    folder.start_generation()
    steps = [load_recipe(folder.recipes / f"life-{n}.yaml").algorithm.steps for n in (0, 1)]
    assert steps == [3, 6]
    assert load_recipe(folder.recipe).algorithm.steps == 6


def test_nothing_is_said_of_a_recipe_that_is_the_same(folder, capsys):
    carry_out(folder, review(folder, ["algorithm.steps=3"]))
    assert capsys.readouterr().out == ""
    assert not folder.events.exists()
    assert journalled(folder)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.dtype=bfloat16", "model.dtype: float32 -> bfloat16: the checkpoint's weights"),
        ("model.path=other", "other: the checkpoint is of that model"),
        ("algorithm.seed=1", "algorithm.seed: 1234 -> 1: the order of the rows would change"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, override, words):
    shutil.copytree("model", "other")
    Path("other/config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 4}))
    with pytest.raises(UserError) as error:
        review(folder, [override])
    assert str(error.value).startswith("a run with a checkpoint (step-000002) cannot change:\n")
    assert words in str(error.value)
    shutil.rmtree(folder.checkpoints / "step-000002")
    assert review(folder, [override]).changes != [], "without a checkpoint the run starts from its beginning"


def test_the_same_model_may_be_at_another_place(folder):
    shutil.move("model", "moved")
    (change,) = review(folder, ["model.path=moved"]).changes
    assert change.key == "model.path"


def other_weights(folder: str) -> None:
    """As a fine-tune with the same config.json has them."""
    with Path(folder, "model.safetensors").open("r+b") as file:
        file.seek(-1000, 2)
        file.write(bytes([1]) * 1000)


def test_another_model_with_the_same_description_is_refused(folder):
    """Its weights would become the reference policy, while the policy comes from the checkpoint."""
    shutil.copytree("model", "sft")
    assert [change.key for change in review(folder, ["model.path=sft"]).changes] == ["model.path"], "a copy"
    other_weights("sft")
    with pytest.raises(UserError) as error:
        review(folder, ["model.path=sft"])
    began, now = Path("model").absolute(), Path("sft").absolute()
    assert f"\n  model.path: {began} -> {now}: the checkpoint is of that model" in str(error.value)
    assert "and other weights would give it another reference policy" in str(error.value)
    shutil.rmtree("model")
    with pytest.raises(UserError, match="other weights would"):
        review(folder, ["model.path=sft"])


def test_a_critic_cannot_join_a_run_that_began_without(folder):
    critic = ["algorithm.advantage=verst.runtime.algorithms.advantages:gae", "algorithm.critic={}"]
    with pytest.raises(UserError, match="critic: step-000002 was written without a critic"):
        review(folder, critic)


@pytest.mark.parametrize("moved", [True, False])
def test_another_description_is_refused_wherever_the_model_is(folder, moved):
    path = shutil.move("model", "moved") if moved else "model"
    Path(path, "config.json").write_text(json.dumps({**LLAMA, "rope_theta": 5e5}))
    with pytest.raises(UserError, match=r"other config.json would .*put the model back"):
        review(folder, [f"model.path={path}"])


def test_weights_that_were_replaced_in_place_are_refused(folder):
    other_weights("model")
    with pytest.raises(UserError, match="other weights would"):
        review(folder, [])


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja"])
def test_another_tokenizer_is_refused(folder, file):
    """Its prompts would be other tokens from this life on."""
    with Path("model", file).open("a") as changed:
        changed.write("\n")
    with pytest.raises(UserError, match="other tokenizer would"):
        review(folder, [])


def test_a_run_without_a_checkpoint_may_begin_again_with_another_model(folder):
    shutil.move(folder.checkpoints / "step-000002", "kept")
    other_weights("model")
    found = review(folder, [])
    carry_out(folder, found)
    path = Path("model").absolute()
    assert [str(change) for change in found.changes] == [f"model.path: {path} -> {path} with other contents"]
    assert not journalled(folder), "another model generated them"
    prepare_resume(folder, load_recipe(folder.recipe), Machine(cores=2))
    shutil.move("kept", folder.checkpoints / "step-000002")
    assert review(folder, []).changes == [], "it is the model that the run has begun with now"


def test_a_run_that_did_not_note_its_model_goes_on_as_it_did(folder):
    (folder.root / "model.json").unlink()
    other_weights("model")
    assert review(folder, []).changes == []
    shutil.move("model", "moved")
    assert [change.key for change in review(folder, ["model.path=moved"]).changes] == ["model.path"]


def test_fewer_steps_than_are_trained_are_refused(folder):
    assert review(folder, ["algorithm.steps=2"]).changes != [], "it ends here, with an export"
    with pytest.raises(UserError) as error:
        review(folder, ["algorithm.steps=1"])
    assert "algorithm.steps: is 1, but " in str(error.value)
    assert "has trained 2 steps already (step-000002)" in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "rollout.sampling.temperature=0.5",
        "rollout.sampling.max_new_tokens=4",
        "algorithm.samples_per_prompt=4",
        "algorithm.mode=fully_async",
        "rollout.reward=my_hooks:awaited",
        "trainer.megatron.lr=1e-5",
        "data.train.max_prompt_tokens=32",
    ],
)
def test_groups_of_another_recipe_are_dropped(folder, override, capsys):
    carry_out(folder, review(folder, [override]))
    assert not journalled(folder)
    assert folder.samples.is_dir()
    key = override.partition("=")[0]
    assert (
        f"groups that were generated and not yet trained are dropped and made anew, because {key} changed"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "override",
    [
        *("rollout.engines=2", "slurm.max_failures=9", "weights.transport=disk", "trainer.ranks_per_node=2"),
        *("rollout.reward_timeout_s=90", "rollout.generate_timeout_s=90", "rollout.max_dropped_in_a_row=9"),
    ],
)
def test_groups_outlive_what_they_do_not_depend_on(folder, override):
    carry_out(folder, review(folder, [override]))
    assert journalled(folder)


def test_a_schedule_that_ends_with_the_run_depends_on_its_steps(folder):
    cosine = ["trainer.megatron.lr-decay-style=cosine"]
    prepare_resume(folder, load_recipe(folder.recipe, cosine), Machine(cores=2))
    assert [c.key for c in review(folder, ["algorithm.steps=6"]).drops_groups] == ["algorithm.steps"]
    critic = ["algorithm.advantage=verst.runtime.algorithms.advantages:gae"]
    critic += ["algorithm.critic={optimizer: {lr-decay-style: cosine}}"]
    change = Change("algorithm.steps", 3, 6)
    assert not is_innocent(change, load_recipe(folder.root.parent.parent / "recipe.yaml", critic))
    assert is_innocent(change, load_recipe(folder.root.parent.parent / "recipe.yaml"))
    fixed = ["trainer.megatron.lr-decay-iters=9"]
    prepare_resume(folder, load_recipe(folder.recipe, fixed), Machine(cores=2))
    assert review(folder, ["algorithm.steps=6"]).drops_groups == []


def test_its_name_and_faults_of_the_schema_come_at_once(folder):
    with pytest.raises(UserError, match="a resumed run cannot change its name or folder"):
        review(folder, ["name=other"])
    with pytest.raises(RecipeError, match="stepz: no such key"):
        review(folder, ["algorithm.stepz=3"])
