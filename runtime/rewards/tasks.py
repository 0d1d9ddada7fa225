"""The reward of reasoning-gym's tasks."""

from __future__ import annotations

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.limits import limited
from verst.runtime.messages.exact_numbers import restored


@limited(cpu_s=5.0, lost=0.0, imports=("reasoning_gym",))
def reasoning_gym(answer: Answer) -> float:
    """The score, 0 to 1, that the reasoning-gym task `answer.metadata["source_dataset"]` gives the response.

    A response that makes the task's own scoring raise, or use more than 5 s of CPU time, is 0.
    """
    import reasoning_gym as gym

    score = gym.get_score_answer_fn(answer.metadata["source_dataset"])
    metadata = restored(answer.metadata)
    entry = {"question": metadata.get("question", ""), "answer": restored(answer.label), "metadata": metadata}
    try:
        return float(score(answer.text.strip(), entry))
    except Exception:  # tasks parse the response, some with eval
        score(str(entry["answer"]), entry)  # raises if the entry is at fault and not the response
        return 0.0
