"""Who gets the next prompts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from verst.runtime.controller.state_machine.askers import Askers

CHANGES = st.lists(
    st.tuples(st.integers(0, 5), st.one_of(st.none(), st.tuples(st.integers(-1, 2), st.integers(0, 3))))
)


@given(CHANGES, st.integers(0, 3), st.integers(-1, 2))
def test_the_one_with_most_room_is_first_and_then_who_asked_first(changes, room, least):
    askers, model = Askers(), {}
    for when, (engine, asked) in enumerate(changes):
        if asked is None:
            askers.discard(engine)
            model.pop(engine, None)
        else:
            askers.put(engine, *asked)
            if model.get(engine, (None,))[0] != asked:
                model[engine] = (asked, when)
    assert [engine in askers for engine in range(6)] == [engine in model for engine in range(6)]
    ranks = [
        (-has_room, -version, when, engine)
        for engine, ((version, has_room), when) in model.items()
        if has_room >= room and version >= least
    ]
    expected = min(ranks)[-1] if ranks else None
    assert askers.first(room, lambda version: version >= least) == expected


def test_asking_again_as_before_keeps_the_place():
    askers = Askers()
    askers.put(1, 0, 8)
    askers.put(2, 0, 8)
    askers.put(1, 0, 8)
    assert askers.first(8, lambda _: True) == 1
    askers.put(1, 0, 4)
    assert askers.first(4, lambda _: True) == 2
