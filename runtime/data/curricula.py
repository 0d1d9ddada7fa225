"""Bundled curricula, and functions that make one: `easy_first = by_column("level")`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from verst.runtime.data.curriculum import CurriculumCall


def by_column(column: str, first: float = 0.1, until: float = 0.5) -> Callable[[CurriculumCall], np.ndarray]:
    """Makes a curriculum that begins with the rows that are lowest in `column`, a number in each row's metadata.

    The share of the rows that may come grows from `first` to all of them at the fraction `until` of the run, as the
    square root of time: the competence of Platanios et al. (arXiv:1903.09848, eq. 7 with p = 2).
    """

    def curriculum(call: CurriculumCall) -> np.ndarray:
        time = min(1.0, (call.step - 1) / max(1.0, until * call.steps))
        share = min(1.0, (time * (1 - first**2) + first**2) ** 0.5)
        values = np.array([row.metadata[column] for row in call.rows], np.float64)
        highest = np.sort(values)[max(1, round(share * len(values))) - 1]
        return (values <= highest).astype(np.float64)

    return curriculum


def near_pass_rate(
    target: float = 0.5, width: float = 0.25, least: float = 0.05
) -> Callable[[CurriculumCall], np.ndarray]:
    """Makes a curriculum that prefers rows whose last mean reward, from 0 to 1, was near `target`.

    A row's weight is exp(-(distance / width)² / 2), at least `least`, so that no row is forgotten. Rows that were never
    answered have the weight 1.
    """

    def curriculum(call: CurriculumCall) -> np.ndarray:
        distance = np.nan_to_num(call.history.last, nan=target) - target
        return np.maximum(least, np.exp(-((distance / width) ** 2) / 2))

    return curriculum


def easy_first(call: CurriculumCall) -> np.ndarray:
    """Begins with the rows that are lowest in the column `difficulty`; all rows may come from half of the run on."""
    return by_column("difficulty")(call)


def half_right(call: CurriculumCall) -> np.ndarray:
    """Prefers rows whose answers were half right when they last came."""
    return near_pass_rate()(call)
