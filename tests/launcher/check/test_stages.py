"""A run whose stages generate nothing has no engine anywhere, and each key that would need one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import yaml

from tests.launcher.model_folders import write_safetensors
from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.check.check import check_recipe, quick_faults
from verst.launcher.plan.machine import Machine
from verst.launcher.plan.memory import estimate_memory
from verst.launcher.plan.model_source import model_folder
from verst.launcher.plan.parallelism import Parallelism
from verst.launcher.plan.plan import gpus_needed, make_plan
from verst.launcher.plan.slurm_options import cluster_of, groups_of
from verst.launcher.plan.training import training_lines, training_of
from verst.launcher.recipe.epochs import with_steps
from verst.launcher.recipe.faults import RecipeError, UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.runs.prepare import prepare_run
from verst.launcher.runs.resume import compare, longer, review
from verst.launcher.slurm.launch import scripts_of
from verst.runtime.controller.config import ControllerConfig
from verst.runtime.run import checkpoints


@pytest.fixture
def sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of supervised steps alone, with ten rows."""
    monkeypatch.chdir(tmp_path)
    whole = yaml.safe_load(write_recipe(tmp_path).read_text())
    whole = {key: whole[key] for key in ("name", "model", "trainer") if key in whole}
    whole["algorithm"] = {
        "stages": [
            {
                "kind": "sft",
                "data": {"path": "rows.jsonl"},
                "eval": {"path": "rows.jsonl"},
                "steps": 4,
                "batch_size": 4,
            }
        ]
    }
    Path("rows.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    with Path("rows.jsonl").open("a") as file:
        file.writelines(json.dumps({"prompt": "a", "response": "b" * n}) + "\n" for n in range(1, 10))
    path = Path("sft.yaml")
    path.write_text(yaml.safe_dump(whole))
    return path


@pytest.fixture
def dpo(sft: Path) -> Path:
    """A recipe of a stage of pairs alone, with ten rows."""
    whole = yaml.safe_load(sft.read_text())
    stage = whole["algorithm"]["stages"][0]
    stage |= {"kind": "dpo", "data": {"path": "pairs.jsonl"}, "eval": {"path": "pairs.jsonl"}}
    rows = [{"prompt": "a", "chosen": "b" * n, "rejected": "c"} for n in range(1, 11)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = Path("dpo.yaml")
    path.write_text(yaml.safe_dump(whole))
    return path


def test_it_has_no_engine_in_plan_slurm_and_controller(sft: Path) -> None:
    recipe = load_recipe(sft)
    assert list(check_recipe(recipe, Machine(cores=2))) == []
    plan = make_plan(recipe, Path("/runs/sft"), Machine(cores=2))
    assert {
        group: [p.role for node in nodes for p in node.processes] for group, nodes in plan.groups.items()
    } == {"trainer": ["controller", "store", "trainer"]}
    assert gpus_needed(recipe) == 1
    assert groups_of(recipe) == ("trainer",)
    assert list(scripts_of(recipe, Path("/runs/sft"), cluster_of(recipe))) == ["trainer"]
    assert "Stage sft: 4 steps of 4 rows; its file has 10 rows, 1.6 passes" in training_lines(
        training_of(recipe)
    )
    folder, _ = prepare_run(recipe, Machine(cores=2))
    written = yaml.safe_load(folder.recipe.read_text())
    assert "rollout" not in written
    assert written["data"] == {"accept_changes": False}
    assert written["algorithm"].keys() == {"stages", "seed"}
    settings = ControllerConfig.read(folder).settings([], 64)
    assert (settings.steps, settings.offline_steps, settings.last_version, settings.min_engines) == (
        0,
        4,
        4,
        0,
    )
    changed = {change.key for change in compare(recipe, load_recipe(folder.recipe))}
    stage = "algorithm.stages.0"
    assert changed == {"runs_dir", "model.path", f"{stage}.data.path", f"{stage}.eval.path"}, "now absolute"


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("rollout.reward=verst.runtime.rewards:exact", "rollout"),
        ("data.train.path=rows.jsonl", "data.train"),
        ("data.eval.path=rows.jsonl", "data.eval"),
        ("weights.transport=disk", "weights"),
        ("placement.layout=colocated", "placement.layout"),
        ("placement.cpus.rollout=1", "placement.cpus.rollout"),
        ("slurm.rollout.time=60", "slurm.rollout"),
        ("trainer.old_logprobs=rollout", "trainer.old_logprobs"),
        ("hooks.step_end=m:f", "hooks.step_end"),
        ("record.keep=true", "record"),
    ],
)
def test_what_would_need_an_engine_is_refused(sft: Path, override: str, place: str) -> None:
    found = [f for f in quick_faults(load_recipe(sft, [override]), Machine(cores=64)) if f.place == place]
    assert len(found) == 1
    assert found[0].message.startswith("has no effect, because no stage generates anything")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.kl_coef=0.1", "kl_coef has no effect, because no stage is of kind policy"),
        ("algorithm.stages.0.steps=null", "a stage needs steps or epochs"),
        ("algorithm.stages.0.epochs=2", "takes only one of them"),
        ("algorithm.stages.0.kind=stf", "stages.0: is of kind stf, must be sft, dpo, reward_model, policy"),
        (
            "algorithm.stages.0.bach_size=3",
            "stages.0.bach_size: no such key (its value is 3). Did you mean `batch_size`",
        ),
        ("algorithm.stages.0.data.max_tokens=0", "stages.0.data.max_tokens: is 0, must be at least 1"),
        ("algorithm.stages.2.steps=3", "`stages` is a list: `2` must be the number of an entry, 0 to 0"),
        ("algorithm.stages=[]", "stages: is []"),
    ],
)
def test_faults_of_a_stage_are_told_with_their_place(sft: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(sft, [override])
    assert words in str(error.value)


def test_a_stage_of_pairs_is_planned_as_one_of_rows_and_holds_a_reference(dpo: Path) -> None:
    recipe = load_recipe(dpo)
    assert list(check_recipe(recipe, Machine(cores=2))) == []
    assert "Stage dpo: 4 steps of 4 rows; its file has 10 rows, 1.6 passes" in training_lines(
        training_of(recipe)
    )
    settings = ControllerConfig.read(prepare_run(recipe, Machine(cores=2))[0]).settings([], 64)
    assert (settings.offline_steps, settings.last_version, settings.min_engines) == (4, 4, 0)


@pytest.fixture
def reward_model(dpo: Path) -> Path:
    """A recipe of a reward model, with ten pairs that have margins."""
    whole = yaml.safe_load(dpo.read_text())
    whole["algorithm"]["stages"][0] |= {"kind": "reward_model", "center_coef": 0.1}
    rows = [{"prompt": "a", "chosen": "b" * n, "rejected": "c", "gap": n} for n in range(1, 11)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = Path("reward-model.yaml")
    path.write_text(yaml.safe_dump(whole))
    return path


def test_a_reward_model_is_planned_without_reference_and_output_layer(reward_model: Path) -> None:
    recipe = load_recipe(reward_model, ["algorithm.stages.0.data.margin_key=gap"])
    assert list(check_recipe(recipe, Machine(cores=2))) == []
    training = training_of(recipe)
    assert "Stage reward_model: 4 steps of 4 rows; its file has 10 rows, 1.6 passes" in training_lines(
        training
    )
    shapes = {"model.embed_tokens.weight": (10, 20), "lm_head.weight": (10, 20), "model.norm.weight": (20,)}
    write_safetensors(model_folder(recipe.model.path) / "model.safetensors", shapes)
    counted = estimate_memory(recipe, model_folder(recipe.model.path), Parallelism(1))
    assert counted is not None
    assert (counted.parameters, counted.trainer_rank) == (220, 220 * (4 + 4 + 8))
    assert training_of(recipe).checkpoint_bytes == 220 * 16
    of_pairs = load_recipe(Path("dpo.yaml"))
    assert training_of(of_pairs).checkpoint_bytes == 420 * 16


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("[{STAGE}, {kind: policy}]", "stages are reward_model, policy: a reward model has a score in place"),
        (
            "[{kind: sft, data: {path: rows.jsonl}, steps: 1}, {STAGE}]",
            "stages are sft, reward_model: a reward",
        ),
        ("[{STAGE, beta: 0.1}]", "stages.0.beta: no such key"),
        ("[{STAGE, center_coef: -1}]", "stages.0.center_coef: is -1, must be at least 0"),
    ],
)
def test_a_reward_model_is_trained_in_a_run_of_its_own(reward_model: Path, stages: str, words: str) -> None:
    stage = "kind: reward_model, data: {path: pairs.jsonl}, steps: 1"
    whole = yaml.safe_load(reward_model.read_text())
    whole["algorithm"]["stages"] = yaml.safe_load(stages.replace("STAGE", stage))
    if "policy" in stages:
        whole["algorithm"] |= {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 2}
    reward_model.write_text(yaml.safe_dump(whole))
    with pytest.raises(RecipeError) as error:
        load_recipe(reward_model)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        ("missing", "set algorithm.stages.0.data.margin_key to one of them (null: there are no margins)"),
        ("prompt", "'prompt' is 'a', and a margin is a finite number"),
        ("true", "'true' is 'True', and a margin is a finite number"),
        ("below", "'below' is -1: a margin below 0 prefers the other answer"),
    ],
)
def test_margins_that_are_none_are_found_before_anything_starts(
    reward_model: Path, margin: str, words: str
) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "true": True, "below": -1}
    Path("pairs.jsonl").write_text(json.dumps(row) + "\n")
    recipe = load_recipe(reward_model, [f"algorithm.stages.0.data.margin_key='{margin}'"])
    found = {fault.place: fault.message for fault in check_recipe(recipe, Machine(cores=2))}
    assert words in found["algorithm.stages.0.data.path"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algorithm.stages.0.beta=0", "stages.0.beta: is 0, must be greater than 0"),
        ("algorithm.stages.0.loss=hinge", "stages.0.loss: is 'hinge', must be sigmoid or ipo"),
        ("algorithm.stages.0.label_smoothing=0.5", "stages.0.label_smoothing: is 0.5, must be less than 0.5"),
        (
            "algorithm.stages.0={loss: ipo, label_smoothing: 0.1}",
            "label_smoothing is 0.1, but the loss ipo does not",
        ),
        ("algorithm.stages.0.loss_average=sample", "stages.0.loss_average: no such key"),
        ("algorithm.stages.0.data.response_key=a", "stages.0.data.response_key: no such key"),
        ("algorithm.stages.0.reference.refresh_interval=3", "reference.refresh_interval: no such key"),
    ],
)
def test_faults_of_a_stage_of_pairs_are_told_with_their_place(dpo: Path, override: str, words: str) -> None:
    whole = yaml.safe_load(dpo.read_text())
    key, _, value = override.partition("=")
    if key == "algorithm.stages.0":
        whole["algorithm"]["stages"][0] |= yaml.safe_load(value)
        dpo.write_text(yaml.safe_dump(whole))
    with pytest.raises(RecipeError) as error:
        load_recipe(dpo, [] if key == "algorithm.stages.0" else [override])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("override", "place", "words"),
    [
        (
            "data.prompt_key=question",
            "data.path",
            "set algorithm.stages.0.data.prompt_key to one of them (null: both",
        ),
        ("data.chosen_key=better", "data.path", "set algorithm.stages.0.data.chosen_key to one of them"),
        (
            "data.prompt_key=null",
            "data.path",
            "'chosen' is a text; without prompt_key a list of messages is needed",
        ),
        ("data.rejected_key=chosen", "data.path", "'chosen' and 'chosen' are the same, which says nothing"),
        ("reference.path=nowhere", "reference.path", "there is no such folder"),
    ],
)
def test_pairs_and_references_that_are_none_are_found_before_anything_starts(
    dpo: Path, override: str, place: str, words: str
) -> None:
    found = check_recipe(load_recipe(dpo, [f"algorithm.stages.0.{override}"]), Machine(cores=64))
    assert f"algorithm.stages.0.{place}" in {fault.place for fault in found}
    assert any(words in fault.message for fault in found)


def test_the_policy_comes_last_and_once(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    for stages in (
        "[{kind: policy}, {kind: policy}]",
        "[{kind: policy}, {kind: sft, data: {path: a}, steps: 1}]",
    ):
        with pytest.raises(RecipeError, match="only the last one can be of kind policy"):
            load_recipe(path, [f"algorithm.stages={stages}"])


def test_epochs_become_steps(sft: Path) -> None:
    """Ten rows in batches of four: 2.5 steps for each pass."""

    def steps(epochs: float) -> Recipe:
        given = [f"algorithm.stages.0.epochs={epochs}", "algorithm.stages.0.steps=null"]
        return with_steps(load_recipe(sft, given))

    assert [steps(epochs).algorithm.last_version for epochs in (0.1, 1, 2, 4)] == [1, 3, 5, 10]


def test_a_batch_must_reach_every_data_parallel_rank(sft: Path) -> None:
    found = list(quick_faults(load_recipe(sft, ["trainer.ranks_per_node=8"]), None))
    assert [f.place for f in found] == ["algorithm.stages.0.batch_size"]
    assert "must be at least 8" in found[0].message


def test_a_stage_that_has_begun_changes_only_its_length_and_its_eval(sft: Path) -> None:
    recipe = load_recipe(sft)
    folder, _ = prepare_run(recipe, Machine(cores=2))
    folder.start_generation()
    checkpoint = folder.checkpoints / "step-000002"
    checkpoint.mkdir()
    manifest = checkpoints.Manifest(
        format=checkpoints.FORMAT, model="m", version=2, optimizer_steps=2, scheduler_steps=2, parallel={}
    )
    (checkpoint / checkpoints.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    stage = "algorithm.stages.0"
    assert longer(recipe.algorithm) == f"{stage}.steps=8"
    for fine in (f"{stage}.steps=8", f"{stage}.steps=2", f"{stage}.eval.interval=1"):
        (change,) = review(folder, [fine]).changes
        assert change.key == fine.partition("=")[0]
    (change,) = review(folder, [f"{stage}.epochs=4", f"{stage}.steps=null"]).changes
    assert str(change) == f"{stage}.steps: 4 -> 10"
    for wrong in (f"{stage}.batch_size=8", f"{stage}.data.max_tokens=9", f"{stage}.lr=1"):
        with pytest.raises(
            UserError, match="has trained 2 steps already, so this stage can change only its steps"
        ):
            review(folder, [wrong])
    with pytest.raises(
        UserError, match=r"stages\.0\.steps: is 1, but .* trained 2 steps already and cannot go back"
    ):
        review(folder, [f"{stage}.steps=1"])
