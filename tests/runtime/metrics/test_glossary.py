"""Every figure that the code writes to metrics.jsonl is explained, and the page is what the table says."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from tests.runtime.algorithms.token_batches import config, token_batch
from tests.runtime.controller.reporting.test_numbers import a_step, group
from verst.runtime import controller
from verst.runtime.dashboard.columns import flat
from verst.runtime.messages.weight_round import RoundReport, Taken
from verst.runtime.metrics.glossary import KINDS, find, page, words

ROOT = Path(__file__).parents[3]


def written() -> Iterator[tuple[str, str]]:
    """(kind, key) of every call `….metric(kind="…", key=…)` in the controller's code, but for nested ones."""
    for path in Path(controller.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "metric"):
                continue
            given = {k.arg: k.value for k in call.keywords if k.arg}
            if "kind" in given:
                kind = ast.literal_eval(given["kind"])
                yield from ((kind, key) for key in given)


def test_every_key_of_a_call_that_writes_a_line_is_explained():
    found = set(written())
    assert {kind for kind, _ in found} == set(KINDS) - {"step", "rollout"}  # their lines are made as a whole
    begins = {kind: {figure.key.partition("/")[0] for figure in KINDS[kind]} for kind in KINDS}
    unknown = [(kind, key) for kind, key in found if not find(kind, key) and key not in begins[kind]]
    assert unknown == []


def test_every_key_of_a_steps_line_is_explained():
    line = a_step([group(0, [0.0, 1.0])])
    assert [key for key, _ in flat(line) if find("step", key) is None] == []
    assert find("step", "reward_histogram/count")
    assert find("step", "of_a_hook") is None


def test_every_key_of_a_weight_rounds_line_is_explained():
    taken = Taken(pause=1, load=1, resume=1, stopped=1, transfer=1)
    report = RoundReport(
        version=1, updated=[0], failed={}, bytes=1, seconds={}, taken={0: taken}, link_bytes={0: [1]}
    )
    nested = {"taken": report.longest(), "links": report.links()}
    assert [key for key, _ in flat(nested) if find("sync", key) is None] == []


def test_every_figure_of_the_trainer_is_explained():
    from verst.launcher.check.hooks.bundled import bundled_hooks
    from verst.runtime.trainer.replay.routing import ReplayCounts
    from verst.runtime.trainer.step.agreement import FIGURE
    from verst.runtime.trainer.step.terms import PolicyTerm
    from verst.runtime.trainer.weights.source_round import PHASES

    assert [name for name in PHASES if find("sync", f"seconds/{name}") is None] == []
    counts = [f"routing_{field.name}" for field in dataclasses.fields(ReplayCounts)]
    made = {FIGURE}
    for loss in bundled_hooks("algorithm.loss").values():
        options: dict[str, float] = {"clip_ratio_c": 3.0} if loss.endswith((":grpo", ":gspo")) else {}
        if loss.endswith(":kl_cov"):
            options["epochs"] = 2
        algorithm = config(
            loss=loss, kl_coef=1.0, correction="verst.runtime.algorithms.corrections:token_masked", **options
        )
        tokens = token_batch(
            [-1.0], advantages=[1.0], old_logprobs=[-1.0], reference_logprobs=[-1.0], config=algorithm
        )
        # What is chosen before each update (`step/covariance_choice.py`).
        chosen = {name: tokens.logprobs.detach() for name in ("covariance", "covariance_chosen")}
        tokens = dataclasses.replace(tokens, signals={**tokens.signals, **chosen})
        made |= PolicyTerm(algorithm, 0, algorithm.kl_coef)(tokens).metrics.keys()
    assert {"dual_clip_fraction", "correction_mean", "kl_reference_k3"} <= made
    made.remove("correction_square")  # it becomes correction_ess
    assert [name for name in (*counts, *made) if find("step", name) is None] == []


def test_every_figure_named_in_the_trainers_code_is_explained():
    """Names of figures as they stand in the code: keys of the dictionaries that become `StepReport.metrics`."""
    root = ROOT / "runtime/trainer"
    step = ("objective.py", "memory.py", "value_objective.py", "token_advantages.py", "updates.py")
    files = [*(root / "replay").glob("*.py"), *(root / "step" / name for name in step)]
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                names |= {
                    k.value for k in node.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)
                }
            if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "metrics":
                names |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    figures = {
        name
        for name in names
        if name.startswith(
            (
                "routing_",
                "selection_",
                "gpu_peak",
                "logprob",
                "trained_",
                "value_",
                "return_",
                "advantage_",
                "critic_",
            )
        )
    }
    assert len(figures) >= 19
    assert [name for name in sorted(figures) if find("step", name) is None] == []
    calls = [node for path in root.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    timed = {
        name
        for call in calls
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "timed"
        for name in phases(call.args[0])
    }
    assert timed >= {"forward_backward", "optimizer"}
    assert [name for name in sorted(timed) if find("step", f"seconds/train/{name}") is None] == []


def phases(name: ast.expr) -> list[str]:
    """The phases that a call times: a model's prefix stands before some."""
    if ast.unparse(name).startswith("f'{self._prefix}"):
        assert isinstance(name, ast.JoinedStr)
        assert isinstance(name.values[1], ast.Constant)
        return [f"{prefix}{name.values[1].value}" for prefix in ("", "critic_")]
    return [str(name.value)] if isinstance(name, ast.Constant) else []


def test_no_figure_is_explained_twice_and_the_page_is_current():
    for kind, figures in KINDS.items():
        keys = [figure.key for figure in figures]
        assert len(set(keys)) == len(keys), kind
    assert (ROOT / "docs/metrics.md").read_text() == "\n".join(page()) + "\n", "run `make docs`"
    json.dumps({f.key: words(f) for figures in KINDS.values() for f in figures})


def test_a_tooltip_says_meaning_unit_and_what_to_expect():
    figure = find("step", "truncated")
    assert (
        words(figure)
        == "answers that were cut off at max_new_tokens (share). Stays low; else raise max_new_tokens"
    )
