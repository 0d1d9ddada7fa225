"""Rewards: functions that score a response. The recipe names one by its dotted path.

A reward function is a plain or an async function:

```python
def my_reward(response: str, label: Any, metadata: dict[str, Any]) -> float: ...
```

`response` is the decoded response without special tokens; `label` and `metadata` come from the prompt's row. The
function returns a finite number or a bool. A plain function runs in a thread, so that it does not hold up generation
if it is slow.

`builtin.py` has the reward functions that come with Verst, and `score.py` calls a reward function and checks its
result.
"""

from verst.runtime.rewards.builtin import exact, math, number, reasoning_gym
from verst.runtime.rewards.score import RewardError, RewardFunction

__all__ = ["RewardError", "RewardFunction", "exact", "math", "number", "reasoning_gym"]
