"""Each prompt counts the same, however many tokens its answers have: `loss_average: examples.average:by_prompt`.

That is the mean over prompts, of each prompt's mean over the tokens of its answers (DAPO, arXiv:2503.14476, eq. 8).
"""

from verst.runtime.algorithms.averages import AverageCall


def by_prompt(call: AverageCall) -> list[list[float]]:
    tokens = [sum(group.trained_tokens) for group in call.groups]
    prompts = sum(n > 0 for n in tokens)
    return [
        [1 / (prompts * n) if n else 0.0] * len(group.rewards)
        for group, n in zip(call.groups, tokens, strict=True)
    ]
