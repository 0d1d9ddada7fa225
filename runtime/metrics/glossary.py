"""What each figure of metrics.jsonl means: the one table behind docs/metrics.md and the dashboard's tooltips.

`python -m verst.runtime.metrics.glossary > docs/metrics.md` writes the page. A key is written as the page and the
trackers have it: a nested `seconds: {train: 1}` is `seconds/train`. A key that ends with `*` stands for all keys that
begin like it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Figure(NamedTuple):
    """One figure, or several that begin alike."""

    key: str
    unit: str  # "" for a plain number or a word
    meaning: str
    hint: str = ""  # what it should do, or what to do about it


F = Figure
EVERY = (
    F("kind", "", "what the line is about"),
    F("time", "s", "when the line was written, in seconds since 1970 by the clock of the controller's node"),
)
STEP = (
    F("step", "", "number of the step: that of the weight version that it made; steps of all stages count"),
    F("version", "", "weight version that the step made; the same number as `step`"),
    F("reward", "", "mean reward of the step's answers", "rises over tens of steps, not in every step"),
    F("rewards/*", "", "quantiles of the step's rewards: smallest, 10 %, median, 90 %, largest"),
    F(
        "reward_histogram/*",
        "",
        "how many answers got which reward: `from` and `to` are the ends of each bin, `count` its "
        "answers. Up to 24 different rewards have a bin each",
    ),
    F(
        "reward_spread",
        "",
        "standard deviation of the rewards within a group, mean over the groups",
        "0 means that nothing can be learned from the step",
    ),
    F(
        "solved_groups",
        "share",
        "groups whose answers all have the same reward, good or bad: they teach nothing",
        "if it is near 1, choose easier or harder prompts, or a reward with steps in between",
    ),
    F(
        "groups_all_right",
        "share",
        "groups whose answers all have a reward of at least 1: too easy. On a scale that does not "
        "reach 1 it stays 0",
    ),
    F("groups_all_wrong", "share", "groups whose answers all have a reward of at most 0: too hard"),
    F(
        "response_length",
        "tokens",
        "mean number of trained tokens of an answer",
        "grows only if the score grows too",
    ),
    F(
        "truncated",
        "share",
        "answers that were cut off at `max_new_tokens`",
        "stays low; else raise `max_new_tokens`",
    ),
    F(
        "samples_per_episode",
        "",
        "mean number of samples that an answer is trained as: 1, or more if a generate function or an agent returns "
        "several. Rewards, lengths and shares of answers count an answer once",
        "of an agent: 1 if it never edits what was said before",
    ),
    F(
        "staleness",
        "versions",
        "age of the oldest token of the step, in weight versions",
        "never above `algorithm.max_staleness`",
    ),
    F(
        "dropped/*",
        "groups",
        "dropped since the step before: `all` of them, and by reason",
        "if most are dropped, choose other prompts or a milder `rollout.filter`",
    ),
    F(
        "sources/*",
        "",
        "by source of `data.train.sources`: `reward`, `response_length` and `truncated` of its answers, "
        "`solved_groups` of its groups, its `share` of the step's groups, and how many of its groups were `dropped`",
        "a source whose `share` is far below its weight loses groups to the filter",
    ),
    F("scores/*", "", "mean of each part of the reward, over the answers whose `Score` has the part"),
    F("reissued", "groups", "dropped as too old, with their prompts issued again"),
    F(
        "rewards_failed",
        "",
        "calls of the reward that failed and were scored by `rollout.reward_failure`, or as lost by a "
        "bundled reward; with `drop`, their groups are in `dropped/reward_failed`",
        "0; the log of `rollout-0` has the reasons",
    ),
    F("samples_masked", "", "answers that `rollout.sample_filter` took out of the training"),
    F("samples_dropped", "", "answers that `rollout.sample_filter` took out of their groups, too"),
    F(
        "loss",
        "",
        "value of the loss that was minimised",
        "says little about progress: in a step of one update it is near zero by construction",
    ),
    F(
        "grad_norm",
        "",
        "norm of the gradient before it was clipped",
        "0 means that no answer had an advantage; leaps come before trouble",
    ),
    F("lr", "", "learning rate of the step's last update"),
    F(
        "kl_rollout_k3",
        "nats",
        "mean KL divergence (k3) of the engine's log-probabilities from the trainer's, per trained token of the step's "
        "first update",
        "small and not growing: below 1e-9 in fp32, 1e-5 to 1e-3 in bf16",
    ),
    F(
        "logprob_max_diff",
        "nats",
        "largest difference of one token's two log-probabilities, engine and trainer before its first update",
        "small and not growing",
    ),
    F(
        "logprob_mean_diff",
        "nats",
        "mean difference of the two log-probabilities, over the tokens of the current weight version",
        "far below `trainer.max_logprob_diff`",
    ),
    F(
        "logprob_mean_diff_older",
        "nats",
        "the same over the tokens of older weight versions, which differ also because the weights have changed since",
        "about the same in every step: a jump is no work of an update",
    ),
    F("ratio", "", "mean ratio of the new to the old policy's probability of a token", "near 1"),
    F("clip_fraction", "share", "trained tokens whose gradient clipping removed", "a few percent at most"),
    F(
        "dual_clip_fraction",
        "share",
        "the part of `clip_fraction` that the dual clip removed; only with `algorithm.clip_ratio_c`",
    ),
    F(
        "correction_mean",
        "",
        "mean factor of `algorithm.correction` over trained tokens",
        "near 1: far from it, engine and trainer or old and new weights differ much",
    ),
    F(
        "correction_ess",
        "share",
        "effective sample size of the factors of `algorithm.correction`: (sum w)² / (n · sum w²)",
        "near 1",
    ),
    F(
        "correction_zero",
        "share",
        "trained tokens that `algorithm.correction` left out (factor 0)",
        "a few percent at most",
    ),
    F(
        "entropy",
        "nats",
        "mean entropy of the policy over trained tokens, at the temperature at which they were sampled",
        "a fall to 0 means that the model answers always the same",
    ),
    F("kl_coef", "", "weight of the KL in this step; only with `algorithm.kl_target`, which adapts it"),
    F(
        "kl_penalty",
        "",
        "mean of what the KL took from the reward of an answer, or with a critic of a sample; only with "
        "`algorithm.kl_in: reward`. `reward` does not count it",
        "small beside the spread of rewards",
    ),
    F(
        "value_mean",
        "",
        "mean of the critic's values before the step, over trained tokens; this and the next only with "
        "`algorithm.critic`",
        "near `return_mean`",
    ),
    F("return_mean", "", "mean of what the critic is trained towards"),
    F(
        "value_explained_variance",
        "share",
        "how much of the variance of the returns the values before the step explained: 1 - Var(R - V) / Var(R); left "
        "out where all returns are equal",
        "rises from 0 towards 1; below 0 the values are worse than a constant",
    ),
    F(
        "value_loss",
        "",
        "half the squared error of the critic's values, with `value_clip`; mean over the updates",
    ),
    F(
        "value_clip_fraction",
        "share",
        "trained tokens whose value loss is that of the value held near the old one",
    ),
    F(
        "advantage_mean",
        "",
        "mean advantage of the trained tokens, before `advantage_whiten` and `advantage_clip`",
    ),
    F("advantage_std", "", "their standard deviation"),
    F("critic_grad_norm", "", "gradient norm of the critic before clipping, mean over the step's updates"),
    F("critic_lr", "", "the critic's learning rate in the step's last update"),
    F(
        "kl_reference_k3",
        "nats",
        "mean KL divergence (k3) from the reference model; only with `algorithm.kl_coef`. The reference is the "
        "model of the first policy step: after other stages the model that these left",
    ),
    F(
        "kl_teacher",
        "nats",
        "mean over the policy's own tokens of log p - log q, with the teacher q; only with `algorithm.teacher`. It "
        "estimates the reverse KL divergence from the teacher",
        "falls",
    ),
    F("trained_tokens", "tokens", "tokens of the step's samples that the loss counted, once for all epochs"),
    F("tokens", "tokens", "tokens that went through the trainer, prompts included, padding not"),
    F("tokens_per_s", "tokens/s", "`tokens` per second of training"),
    F(
        "rollout_tokens_per_s",
        "tokens/s",
        "tokens that all engines generated, per second from the first request to the last acknowledged group",
    ),
    F("bottleneck", "", "what the run waited for most in this step: the largest part of `critical_path`"),
    F(
        "critical_path/*",
        "s",
        "the step's time by what the run waited for: `train`, `weight_sync`, `turn`, `checkpoint`, "
        "`rollout`, or `wait` if nothing was going on. The parts add up to `seconds/step`",
    ),
    F("seconds/step", "s", "from the end of the step before to the end of this one"),
    F(
        "seconds/rollout",
        "s",
        "from the first request of the step's groups to the last acknowledgement; may overlap with training",
    ),
    F("seconds/train", "s", "the trainer's ranks at work on the step"),
    F("seconds/weight_sync", "s", "the weight round before the step"),
    F("seconds/train/fetch", "s", "reading the samples from the store shards and handing them to the ranks"),
    F("seconds/train/own_routing", "s", "the forward pass whose routing the training pass replays (R2)"),
    F(
        "seconds/train/policy_logprobs",
        "s",
        "the forward pass of the policy before a step of several updates",
    ),
    F("seconds/train/reference_logprobs", "s", "the forward pass of the reference model"),
    F("seconds/train/teacher_logprobs", "s", "the forward pass of the teacher"),
    F("seconds/train/critic_values", "s", "the forward pass of the critic before the step"),
    F("seconds/train/token_advantages", "s", "advantages and returns of each token from the critic's values"),
    F("seconds/train/forward", "s", "the forward pass of the policy in a step that trains the critic alone"),
    F("seconds/train/critic_forward_backward", "s", "forward and backward passes of the critic"),
    F("seconds/train/critic_optimizer", "s", "the update of the critic's optimizer"),
    F("seconds/train/routing_probe", "s", "the extra forward pass that measures what replay changes"),
    F("seconds/train/forward_backward", "s", "forward and backward passes"),
    F("seconds/train/optimizer", "s", "the optimizer's update, gradient clipping included"),
    F("routing_replayed", "tokens × layers", "routers that used the engine's experts in forward passes"),
    F(
        "routing_recomputed",
        "tokens × layers",
        "routers that used the engine's experts when activations were recomputed",
    ),
    F(
        "routing_wrong",
        "tokens × layers",
        "routers that did something else than they were given",
        "anything but 0 is a defect",
    ),
    F(
        "routing_free",
        "tokens × layers",
        "routers that chose by themselves, because the engine's choice is unknown",
    ),
    F(
        "routing_would_differ",
        "share",
        "replayed choices that the trainer's router would have made differently",
    ),
    F(
        "routing_tokens_differ",
        "share",
        "tokens with such a choice in some layer, in some update of the step",
    ),
    F(
        "routing_probe_kl_free",
        "nats",
        "KL (k3) of the engine's policy from the trainer's on a micro-batch, without replay",
    ),
    F("routing_probe_kl_replayed", "nats", "the same with replay", "smaller than without"),
    F("routing_probe_ratio_free", "", "largest ratio of a token's two probabilities there, without replay"),
    F("routing_probe_ratio_replayed", "", "the same with replay"),
    F(
        "selection_replayed",
        "tokens × layers",
        "sparse attention that used the engine's positions in forward passes, padding included",
    ),
    F("selection_recomputed", "tokens × layers", "the same when activations were recomputed"),
    F(
        "selection_wrong",
        "tokens × layers",
        "sparse attention computed with another choice than given",
        "anything but 0 is a defect",
    ),
    F(
        "selection_would_differ",
        "share",
        "given positions that the layer's own indexer would not have chosen",
    ),
    F("selection_tokens_differ", "share", "tokens with such a position in some layer"),
    F("gpu_peak_allocated_gib", "GiB", "most that torch had allocated on the fullest rank during the step"),
    F("gpu_peak_reserved_gib", "GiB", "most that torch had reserved on the fullest rank during the step"),
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
STAGE_STEP = (
    F("step", "", "number of the step: that of the weight version that it made"),
    F("stage", "", "kind of the stage: `sft` or `dpo`"),
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
    F("epoch", "", "passes over the rows of the stage so far"),
    F("grad_norm", "", "norm of the gradient before it was clipped"),
    F("lr", "", "learning rate of the step"),
    F("entropy", "nats", "mean entropy of the model's distribution at trained tokens"),
    F("trained_tokens", "tokens", "that the loss counts"),
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
