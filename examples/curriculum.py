"""A curriculum: `data: {train: {path: train.jsonl, curriculum: "curriculum:short_then_unsolved"}}`."""

import numpy as np

from verst.runtime.data.curriculum import CurriculumCall


def short_then_unsolved(call: CurriculumCall) -> np.ndarray:
    """In the first tenth of the run only the shorter half of the prompts; then rows that were solved come rarely."""
    if call.step <= call.steps / 10:
        lengths = np.array([len(row.ids) for row in call.rows])
        return (lengths <= np.median(lengths)).astype(float)
    solved = call.history.last >= 1.0  # False where a row was never answered
    return np.where(solved, 0.1, 1.0)
