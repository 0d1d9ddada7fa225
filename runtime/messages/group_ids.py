"""Numbers of prompt groups: which prompt a group answers, and how often that prompt was issued before.

A prompt's number is its place in the data (`runtime/data/cursor.py`). A prompt can be issued more than once, because a
group that is too old to be trained on is dropped. Each time it gets another group number, so that no part of the run
takes the new group for the old one, and another seed. Prompt 57 has the groups 57, 1000000000057, 2000000000057, …
The number alone says all this, so a resumed run needs no table. Rows of
stages without engines have negative numbers.
"""

from __future__ import annotations

_PROMPTS = 10**12  # more than any run issues


def group_id(prompt: int, reissue: int) -> int:
    """The number of the group that answers `prompt` after it was issued `reissue` times before."""
    return prompt + reissue * _PROMPTS


def prompt_of(group: int) -> int:
    """The number of the prompt that a group answers."""
    return group % _PROMPTS


def reissue_of(group: int) -> int:
    """How often the group's prompt was issued before."""
    return group // _PROMPTS
