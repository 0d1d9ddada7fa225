"""Rewards: functions from a response to a number, named in the recipe by dotted path.

A reward function is plain or async:

```python
def my_reward(response: str, label: Any, metadata: dict[str, Any]) -> float: ...
```

`response` is the decoded response without special tokens, `label` and `metadata` come from the prompt's
row. It returns a finite number (or a bool). Plain functions run in a thread, so a slow one does not hold
up generation.
"""

from verst.runtime.rewards.builtin import exact, math, number, reasoning_gym
from verst.runtime.rewards.score import RewardError, RewardFunction

__all__ = ["RewardError", "RewardFunction", "exact", "math", "number", "reasoning_gym"]
