"""Rewards: functions that score a response. The recipe names one by its dotted path.

A reward function is a plain or an async function:

```python
def my_reward(answer: Answer) -> float:
    return float(answer.text.strip() == answer.label)
```

It returns a finite number or a bool, or a `Score` with parts. It runs in processes beside the rollout worker,
which are killed and replaced if it hangs or crashes (`runtime/hooks/pool.py`).

`builtin.py` has the reward functions that come with Verst, and `score.py` calls a reward function and decides what a
failure means.
"""

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError, LabelError
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.builtin import checks_labels, exact, math, number, reasoning_gym
from verst.runtime.rewards.score import RewardFailedError, RewardFunction

__all__ = [
    "Answer",
    "HookError",
    "LabelError",
    "RewardFailedError",
    "RewardFunction",
    "Score",
    "checks_labels",
    "exact",
    "math",
    "number",
    "reasoning_gym",
]
