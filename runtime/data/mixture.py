"""Mixes sources by weight: which source a prompt comes from is a pure function of the prompt's number.

The mix is regular, not drawn: after any number of prompts each source has had its share of them, to within less than
one prompt. This is Tijdeman's answer to the chairman assignment problem (Discrete Mathematics 32, 1980, section 3): of
the sources that are due, the one whose next prompt has the earliest deadline comes next. It is computed in integers,
so it is exact, and repeats once each source has had its whole number of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

_LONGEST_PERIOD = 1_000_000


def shares(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the proportion of the weights, as these are written: 0.5, 0.25 -> 2, 1.

    Raises ValueError if their sum is above a million.
    """
    fractions = [Fraction(repr(weight)) for weight in weights]
    common = lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * common) for fraction in fractions]
    divisor = gcd(*whole)
    whole = [number // divisor for number in whole]
    if sum(whole) > _LONGEST_PERIOD:
        raise ValueError(
            f"the weights {', '.join(f'{weight:g}' for weight in weights)} are as {' : '.join(map(str, whole))}, which "
            f"repeats only after {sum(whole):,} prompts: round them"
        )
    return whole


class Mixture:
    """The order in which sources take their turns."""

    def __init__(self, weights: Sequence[float]) -> None:
        """Raises ValueError for weights that `shares` refuses."""
        self._shares = shares(weights)
        self._sources = _order(self._shares)
        places = np.empty_like(self._sources)  # which of its source's prompts in a period this one is
        for source in range(len(weights)):
            mine = self._sources == source
            places[mine] = np.arange(mine.sum())
        self._places = places

    def turn(self, position: int) -> tuple[int, int]:
        """(source, number): the prompt at `position` is the source's prompt of this number. Both count from 0."""
        period, place = divmod(position, len(self._sources))
        source = int(self._sources[place])
        return source, period * self._shares[source] + int(self._places[place])


def _order(shares: Sequence[int]) -> np.ndarray:
    """One period of the mix, [sum of shares].

    Source s takes its k-th prompt (k >= 0) at a place t with (k - 1 + 1/c) / p < t + 1 and by the deadline
    t + 1 <= (k + 1 - 1/c) / p, where p is its share and c = 2n - 2 for n sources: so it is never as much as one prompt
    from p (t + 1).
    """
    if len(shares) == 1:
        return np.zeros(shares[0], np.int32)
    total, slack = sum(shares), 2 * len(shares) - 2
    given = [0] * len(shares)
    order = np.empty(total, np.int32)
    for place in range(total):
        # All times are multiplied by slack * share, and compared without division.
        due = [
            source
            for source, share in enumerate(shares)
            if share * slack * (place + 1) >= total * (given[source] * slack + 1)
        ]
        chosen = due[0]
        for source in due[1:]:
            mine = (given[source] * slack + slack - 1) * shares[chosen]
            if mine < (given[chosen] * slack + slack - 1) * shares[source]:
                chosen = source
        given[chosen] += 1
        order[place] = chosen
    return order
