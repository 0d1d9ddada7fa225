"""What each figure of metrics.jsonl means: the one table behind docs/metrics.md and the dashboard's tooltips.

`python -m verst.runtime.metrics.glossary > docs/metrics.md` writes the page. A key is written as the page and the
trackers have it: a nested `seconds: {train: 1}` is `seconds/train`. A key that ends with `*` stands for all keys that
begin like it. `step_figures.py` has the figures of a step.
"""

from __future__ import annotations

from collections.abc import Iterator

from verst.runtime.metrics.figure import Figure
from verst.runtime.metrics.step_figures import STEP

F = Figure
EVERY = (
    F("kind", "", "what the line is about"),
    F("time", "s", "when the line was written, in seconds since 1970 by the clock of the controller's node"),
)
_OVER_PROMPTS = "with prompts as clusters (docs/evaluation.md)"
EVAL = (
    F("set", "", "name of the evaluation set; trackers get the figures as `eval/SET/reward`"),
    F("step", "", "weight version that was evaluated: the step that made it, 0 for the model as it came"),
    F("when", "", "`before`, `during` or `after` training; `alone`: by `verst eval`, without any"),
    F(
        "reward",
        "",
        "mean reward of the answers to the set's prompts",
        "rises; a gap to the training reward that grows is overfitting",
    ),
    F(
        "reward_ci",
        "",
        f"half width of the mean's 95 % interval, {_OVER_PROMPTS}; missing where all prompts have the same value",
    ),
    F(
        "pass@*",
        "share",
        "chance that one of k answers is right, unbiased; `pass@k_ci` is the half width of its 95 % interval",
        "with more k above `pass@1`; where both come together, answers no longer differ",
    ),
    F(
        "best@*",
        "",
        "mean over prompts of the best reward of n answers; `best@n_ci` is the half width of its interval",
    ),
    F(
        "maj@*",
        "",
        "mean reward of the final answer that most of n answers give; `maj@n_ci` is the half width of its interval",
    ),
    F("response_length", "tokens", "mean length of an answer"),
    F(
        "truncated",
        "share",
        "answers that were cut off by their limit",
        "near 0; else raise `max_new_tokens`",
    ),
    F("samples", "answers", "number of answers to all prompts of the set"),
    F("prompts", "prompts", "number of the set's prompts"),
    F("left_out", "rows", "rows of the set's file that are longer than `max_prompt_tokens` and take no part"),
)
DATA = (
    F(
        "data_train/*",
        "rows",
        "`rows` of training prompts that are used, and `too_long` ones that are left out",
    ),
    F("data_eval/*", "rows", "the same of the evaluation prompts"),
    F("algorithm_stages_*", "rows", "the same of the `data` and `eval` of each stage, by its number"),
)
_DPO = {
    "accuracy": "pairs whose chosen answer has the higher implied reward",
    "margin": "mean over pairs of the implied reward of the chosen answer, minus that of the rejected one",
    "chosen_reward": "mean implied reward of the chosen answers: beta times the log-ratio of model and reference, "
    "summed over the answer's tokens",
    "rejected_reward": "the same of the rejected answers",
}
_REWARD_MODEL = {
    "accuracy": "pairs whose chosen answer has the higher score",
    "margin": "mean over pairs of the score of the chosen answer, minus that of the rejected one",
    "chosen_score": "mean score of the chosen answers",
    "rejected_score": "mean score of the rejected answers",
}
STAGE_STEP = (
    F("step", "", "number of the step: that of the weight version that it made"),
    F("stage", "", "kind of the stage: `sft`, `dpo` or `reward_model`"),
    F(
        "loss",
        "",
        "the objective of the stage; of `sft` nats: the mean of the negative log-probabilities",
        "falls",
    ),
    F("dpo_accuracy", "share", _DPO["accuracy"], "rises from 0: at first the model is the reference"),
    F("dpo_margin", "", _DPO["margin"], "rises from 0"),
    F("dpo_chosen_reward", "", _DPO["chosen_reward"], "if it falls far, raise `sft_coef` or `beta`"),
    F("dpo_rejected_reward", "", _DPO["rejected_reward"], "falls"),
    F("reward_model_accuracy", "share", _REWARD_MODEL["accuracy"], "rises from 0: at first all scores are 0"),
    F("reward_model_margin", "", _REWARD_MODEL["margin"], "rises from 0"),
    F("reward_model_chosen_score", "", _REWARD_MODEL["chosen_score"], "if it drifts, set `center_coef`"),
    F("reward_model_rejected_score", "", _REWARD_MODEL["rejected_score"], "below that of the chosen ones"),
    F("epoch", "", "passes over the rows of the stage so far"),
    F("grad_norm", "", "norm of the gradient before it was clipped"),
    F("lr", "", "learning rate of the step"),
    F("entropy", "nats", "mean entropy of the model's distribution at trained tokens; not of a reward model"),
    F("trained_tokens", "tokens", "that the loss counts; not of a reward model, which scores whole answers"),
    F("tokens", "tokens", "that went through the model, without padding"),
    F("tokens_per_s", "tokens/s", "the same by the seconds of the step"),
    F("seconds/step", "s", "the whole step"),
    F("seconds/rows", "s", "of these, writing the rows to the store"),
    F("seconds/train", "s", "of these, the trainer's part"),
    F("seconds/train/*", "s", "phases of the trainer's part"),
    F("peak_gib*", "GiB", "device memory of the fullest rank: allocated at the peak, or reserved"),
)
STAGE_EVAL = (
    F("step", "", "weight version that was measured, on the held-out rows of a stage (`eval` of the stage)"),
    F("stage", "", "kind of the stage"),
    F("rows", "rows", "held-out rows that the figures are of"),
    F(
        "sft_loss",
        "nats",
        "mean negative log-probability of their trained tokens",
        "falls; if it rises, more steps overfit",
    ),
    F("sft_entropy", "nats", "mean entropy at their trained tokens"),
    F("sft_trained_tokens", "tokens", "their trained tokens"),
    F(
        "dpo_loss",
        "",
        "mean loss of the held-out pairs, `sft_coef` included",
        "falls; if it rises, more steps overfit",
    ),
    F("dpo_accuracy", "share", _DPO["accuracy"], "rises"),
    F("dpo_margin", "", _DPO["margin"]),
    F("dpo_chosen_reward", "", _DPO["chosen_reward"]),
    F("dpo_rejected_reward", "", _DPO["rejected_reward"]),
    F("dpo_entropy", "nats", "mean entropy at the trained tokens of both answers"),
    F("dpo_trained_tokens", "tokens", "trained tokens of both answers"),
    F(
        "reward_model_loss",
        "",
        "mean loss of the held-out pairs, `center_coef` included",
        "falls; if it rises, more steps overfit",
    ),
    F("reward_model_accuracy", "share", _REWARD_MODEL["accuracy"], "rises"),
    F("reward_model_margin", "", _REWARD_MODEL["margin"]),
    F("reward_model_chosen_score", "", _REWARD_MODEL["chosen_score"]),
    F("reward_model_rejected_score", "", _REWARD_MODEL["rejected_score"]),
)
# A step whose groups are only kept has some of a step's figures.
_OF_ROLLOUT = (
    "reward", "rewards/*", "reward_histogram/*", "reward_spread", "solved_groups", "groups_all_right",
    "groups_all_wrong", "response_length", "truncated", "rewards_failed", "dropped/*", "reissued", "own/*", "scores/*",
    "rollout_tokens_per_s", "seconds/rollout",
)  # fmt: skip
ROLLOUT = (
    F("step", "", "number of the step that these groups would be for"),
    F("rollout_tokens", "tokens", "generated tokens of the step's answers"),
    *(figure for figure in STEP if figure.key in _OF_ROLLOUT),
)
SYNC = (
    F("version", "", "weight version that was sent"),
    F("engines", "", "engines that have it now", "an engine that missed it is told in events.jsonl"),
    F("bytes", "bytes", "sent over all links, or written to a folder"),
    F(
        "checked_tensors",
        "tensors",
        "compared bit for bit and equal, over all engines; 0 without `weights.check`",
    ),
    F("seconds/connect", "s", "opening links to engines that are new"),
    F("seconds/pause", "s", "until the engines had stopped generating"),
    F("seconds/gather", "s", "collecting whole tensors on the sending rank"),
    F("seconds/convert", "s", "converting weights to the engines' format"),
    F("seconds/write", "s", "writing the version to its folder"),
    F("seconds/transfer", "s", "sending"),
    F("seconds/load", "s", "waiting for engines that read a folder"),
    F("seconds/resume", "s", "until the engines generated again"),
    F("seconds/check", "s", "comparing tensors"),
    F("taken/fetch", "s", "slowest engine: reading and verifying, while it generated"),
    F("taken/fetch_bytes", "bytes", "largest amount that an engine read"),
    F("taken/pause", "s", "slowest engine: until it had stopped generating"),
    F("taken/transfer", "s", "slowest engine: receiving"),
    F("taken/load", "s", "slowest engine: its work after the transfer"),
    F("taken/resume", "s", "slowest engine: until it generated again"),
    F("taken/stopped", "s", "longest time that an engine generated nothing"),
    F("links/count", "links", "connections between a trainer rank and an engine rank"),
    F("links/most", "bytes", "over the fullest link"),
    F("links/least", "bytes", "over the emptiest link"),
    F("links/rate", "bytes/s", "over the fullest link of the slowest engine"),
)
TURN = (
    F("turn", "", "who has the GPUs now: `trainer`, `engines` or `both`"),
    F("version", "", "weight version of the trainer"),
    F("seconds", "s", "passing the GPUs"),
    F("trainer_held", "bytes", "largest rank: weights, optimizer state and copies that stay on the device"),
    F("trainer_offloaded", "bytes", "largest rank: of these, on the host"),
    F("trainer_allocated", "bytes", "largest rank: all that torch has allocated on the GPU"),
    F("trainer_seconds", "s", "slowest rank: moving its memory"),
)
CHECKPOINT = (
    F("version", "", "weight version that was saved"),
    F("seconds", "s", "from the order to the complete checkpoint; training may go on beside it"),
)
PROGRESS = (
    F("step", "", "step that the groups are for"),
    F("done", "groups", "accepted so far"),
    F("of", "groups", "that the step needs"),
    F("dropped", "groups", "dropped since the step before"),
)
EVAL_PROGRESS = (
    F("step", "", "weight version that is being evaluated"),
    F("done", "prompts", "scored so far"),
    F("of", "prompts", "that the evaluation has"),
)
KINDS: dict[str, tuple[Figure, ...]] = {
    "step": STEP,
    "rollout": ROLLOUT,
    "eval": EVAL,
    "stage_step": STAGE_STEP,
    "stage_eval": STAGE_EVAL,
    "sync": SYNC,
    "turn": TURN,
    "checkpoint": CHECKPOINT,
    "data": DATA,
    "rollout_progress": PROGRESS,
    "eval_progress": EVAL_PROGRESS,
}
TITLES = {
    "step": "A step",
    "rollout": "A step of a run that only generates (`record.generate_only`)",
    "eval": "An evaluation",
    "stage_step": "A step of a stage without engines",
    "stage_eval": "An evaluation on a stage's held-out rows",
    "sync": "A weight round",
    "turn": "Passing the GPUs, where trainer and engines share them",
    "checkpoint": "A checkpoint",
    "data": "The prompt files, at the start",
    "rollout_progress": "Progress of the groups of a step",
    "eval_progress": "Progress of an evaluation",
}


def find(kind: str, key: str) -> Figure | None:
    """The figure of a key in lines of a kind; None for a key that Verst does not write, such as a hook's own."""
    for figure in (*KINDS.get(kind, ()), *EVERY):
        name, star, _ = figure.key.partition("*")
        if key == name or (star and key.startswith(name) and len(key) > len(name)):
            return figure
    return None


def words(figure: Figure) -> str:
    """The figure in a few words, as a tooltip."""
    unit = f" ({figure.unit})" if figure.unit else ""
    hint = f". {figure.hint[0].upper()}{figure.hint[1:]}" if figure.hint else ""
    return f"{figure.meaning}{unit}{hint}".replace("`", "")


def page() -> Iterator[str]:
    """The lines of docs/metrics.md."""
    yield from (
        "# What each figure means",
        "",
        "Every figure of `metrics.jsonl`, by the `kind` of its line. A name with a slash is nested in the file:",
        '`seconds/train` is `"seconds": {"train": …}`; trackers get the names as they stand here. The same texts are',
        "the dashboard's tooltips. What is not in this list comes from a hook of yours: `own/NAME` is the mean of a",
        "figure that a generate function or a filter put into its samples ([how](hooks.md#generate)).",
        "",
        "This page is made by `make docs` from `runtime/metrics/glossary.py`.",
    )
    sections = [("Every line", EVERY), *((f"{TITLES[kind]}: `{kind}`", rows) for kind, rows in KINDS.items())]
    for title, rows in sections:
        yield from (
            "",
            f"## {title}",
            "",
            "| figure | unit | meaning | what to expect |",
            "|---|---|---|---|",
        )
        for row in rows:
            yield f"| `{row.key}` | {row.unit} | {row.meaning} | {row.hint} |"


def main() -> None:
    """Prints the page."""
    print("\n".join(page()))


if __name__ == "__main__":
    main()
