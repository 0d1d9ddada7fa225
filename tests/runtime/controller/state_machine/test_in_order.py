"""Groups in the order of the dataset, whatever order they finish in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from verst.runtime.controller.state_machine.in_order import InOrder

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["issue", "accept", "drop", "take", "of an earlier life", "reopen", "drop accepted"]),
        st.integers(0, 30),
    )
)


@given(st.sets(st.integers(0, 9)), CHANGES, st.integers(1, 3))
def test_the_next_are_those_that_sorting_all_would_find(journalled, changes, count):
    order, accepted, open_ones, next_id = InOrder(journalled), set(journalled), set[int](), 10
    for what, number in changes:
        if what == "issue":
            order.issue(next_id)
            open_ones.add(next_id)
            next_id += 1
        elif what == "of an earlier life" and number < 10 and number not in accepted:
            order.accept(number)
            accepted.add(number)
            open_ones.discard(number)
        elif what in ("accept", "drop") and open_ones:
            id = sorted(open_ones)[number % len(open_ones)]
            open_ones.remove(id)
            if what == "accept":
                order.accept(id)
                accepted.add(id)
            else:
                order.drop(id)
        elif what == "reopen" and accepted | open_ones:  # an accepted group turned out to be too old
            id = sorted(accepted | open_ones)[number % len(accepted | open_ones)]
            order.reopen(id)
            accepted.discard(id)
            open_ones.add(id)
        elif what == "drop accepted" and accepted:
            id = sorted(accepted)[number % len(accepted)]
            order.drop(id)
            accepted.remove(id)
        elif what == "take":
            first = sorted(accepted | open_ones)[:count]
            ready = len(first) == count and not open_ones.intersection(first)
            assert order.ready(count) == ready
            if ready:
                assert order.take(count) == first
                accepted.difference_update(first)
