"""Rewards that depend on the other answers to the prompt: `rollout.group_reward: examples.group_reward:brief`.

Short right answers get more than long ones, and long wrong ones less than short ones (Kimi k1.5, arXiv:2501.12599).
"""

from verst.runtime.rewards import Answer, Score


def brief(answers: list[Answer]) -> list[Score]:
    lengths = [len(answer.ids) for answer in answers]
    shortest, spread = min(lengths), max(lengths) - min(lengths)
    scores = []
    for answer, length in zip(answers, lengths, strict=True):
        bonus = 0.5 - (length - shortest) / spread if spread else 0.0
        right = answer.score.value  # by the recipe's `rollout.reward`
        scores.append(Score(right + 0.1 * (bonus if right else min(0.0, bonus)), {"brevity": bonus}))
    return scores
