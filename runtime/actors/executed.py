"""Remembers the accepted calls, so that none runs twice even if its message is repeated or replayed."""

from __future__ import annotations

from collections import OrderedDict

# Per caller. More than can be in flight, so an older number must be a repetition.
REMEMBERED_CALLS = 4096
_WINDOW = (1 << REMEMBERED_CALLS) - 1
REMEMBERED_CALLERS = 16_384


class Executed:
    """The accepted calls of one caller, whose numbers rise and whose connection keeps their order.

    Has one bit per number, so a caller costs 0.6 kB however many calls it makes.
    """

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 1  # bit n: the number that is n below the highest

    def first_time(self, call: int) -> bool:
        if call > self._highest:
            risen = min(call - self._highest, REMEMBERED_CALLS)
            self._seen = (self._seen << risen | 1) & _WINDOW
            self._highest = call
            return True
        behind = self._highest - call
        if call <= 0 or behind >= REMEMBERED_CALLS or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


class ExecutedCalls:
    """The accepted calls of the last REMEMBERED_CALLERS callers."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, Executed] = OrderedDict()

    def __len__(self) -> int:
        return len(self._of)

    def first_time(self, sender: str, call: int) -> bool:
        """Notes a call. Returns False if it was noted before, or is so old that it may have been."""
        executed = self._of.get(sender)
        if executed is None:
            executed = self._of[sender] = Executed()
            if len(self._of) > REMEMBERED_CALLERS:
                self._of.popitem(last=False)
        self._of.move_to_end(sender)
        return executed.first_time(call)
