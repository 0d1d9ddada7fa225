"""Rewards that depend on the other answers to the prompt: `rollout.group_reward: examples.group_reward:varied`.

An answer that says the same as others loses a tenth of its reward for each of them.
"""

from collections import Counter

from verst.runtime.rewards import Answer, Score


def varied(answers: list[Answer]) -> list[Score]:
    said = [" ".join(answer.text.split()).lower() for answer in answers]
    same = Counter(said)
    scores = []
    for answer, text in zip(answers, said, strict=True):
        alike = same[text] - 1
        right = answer.score.value  # by the recipe's `rollout.reward`
        scores.append(Score(right * max(0.0, 1 - 0.1 * alike), {"alike": alike}))
    return scores
