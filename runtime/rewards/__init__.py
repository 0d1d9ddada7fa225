"""Rewards: functions that score a response. The recipe names one by its dotted path.

A reward function is a plain or an async function:

```python
def my_reward(answer: Answer) -> float:
    return float(answer.text.strip() == answer.label)
```

It returns a finite number or a bool, or a `Score` with parts. It runs in processes beside the rollout worker,
which are killed and replaced if it hangs or crashes (`runtime/hooks/pool.py`).

The rewards that come with Verst are in files by topic: `plain.py`, `mathematics.py`, `dapo.py`, `squad.py`,
`choice.py`, `form.py`, `lengths.py`, `ifeval/`, `code.py`, `remote.py`, `tasks.py`. They find the final answer with
`final.py` and refuse labels with `labels.py`. `score.py` calls a reward function, or several (`config.py`), and
`group.py` one of all answers to a prompt. `failures.py` decides what a failure means.
"""

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError, LabelError
from verst.runtime.hooks.preparation import checks_arguments, prepared_by
from verst.runtime.hooks.score import Score, scores_itself
from verst.runtime.rewards.choice import choice
from verst.runtime.rewards.code import code
from verst.runtime.rewards.dapo import dapo_math, overlong
from verst.runtime.rewards.failures import RewardFailedError
from verst.runtime.rewards.form import format
from verst.runtime.rewards.ifeval.reward import ifeval
from verst.runtime.rewards.labels import checks_labels
from verst.runtime.rewards.lengths import cosine, relative_length
from verst.runtime.rewards.mathematics import boxed, deepscaler, math
from verst.runtime.rewards.plain import exact, number
from verst.runtime.rewards.remote import judge, remote
from verst.runtime.rewards.squad import exact_match, f1
from verst.runtime.rewards.tasks import reasoning_gym

__all__ = [
    "Answer",
    "HookError",
    "LabelError",
    "RewardFailedError",
    "Score",
    "boxed",
    "checks_arguments",
    "checks_labels",
    "choice",
    "code",
    "cosine",
    "dapo_math",
    "deepscaler",
    "exact",
    "exact_match",
    "f1",
    "format",
    "ifeval",
    "judge",
    "math",
    "number",
    "overlong",
    "prepared_by",
    "reasoning_gym",
    "relative_length",
    "remote",
    "scores_itself",
]
