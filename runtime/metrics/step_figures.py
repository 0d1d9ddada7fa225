"""The figures of a step that trains on what engines generate: lines of the kind `step`."""

from __future__ import annotations

from verst.runtime.metrics.figure import Figure

F = Figure

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
        "samples_filtered/*",
        "samples",
        "samples that `algorithm.logprob_filter` took out of the step: `all` of them, and by reason; only with such a "
        "filter",
        "few: if most are taken out, find out why engine and trainer, or old and new weights, differ so much",
    ),
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
        "covariance",
        "",
        "covariance of log-probability and advantage over trained tokens; only with the losses `clip_cov` and `kl_cov`",
        "the higher, the faster the entropy falls",
    ),
    F(
        "covariance_chosen",
        "share",
        "trained tokens that `clip_cov` left without a gradient, or `kl_cov` held at the old policy",
        "`algorithm.cov_share`; below it if fewer tokens are within the bounds of `clip_cov`",
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
        "the forward pass of the policy before a step that needs the old policy's log-probabilities first",
    ),
    F("seconds/train/reference_logprobs", "s", "the forward pass of the reference model"),
    F("seconds/train/teacher_logprobs", "s", "the forward pass of the teacher"),
    F("seconds/train/critic_values", "s", "the forward pass of the critic before the step"),
    F("seconds/train/token_advantages", "s", "advantages and returns of each token from the critic's values"),
    F(
        "seconds/train/covariance_choice",
        "s",
        "the choice of tokens for `clip_cov` and `kl_cov`, over all ranks",
    ),
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
