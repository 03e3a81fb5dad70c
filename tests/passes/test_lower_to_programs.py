"""The construction of programs on plain data, and what the pass refuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.programs import build as building
from passes.programs.build import build
from passes.programs.data import (
    ALL_GATHER,
    COMPUTE,
    COPY,
    FREE,
    RECV,
    SEND,
    Move,
    Operator,
    Pipeline,
    Read,
    Rows,
    TooLong,
    Value,
)
from passes.programs.messages import messages, share

# --- messages --------------------------------------------------------------------------------

sets = st.lists(st.integers(0, 7), min_size=1, max_size=6, unique=True).map(lambda s: tuple(sorted(s)))


@given(source=sets, target=sets, size=st.integers(0, 40))
def test_a_whole_value_goes_once_to_every_target(source: tuple[int, ...], target: tuple[int, ...], size: int):
    sent = messages(source, target, size, sharded=False, gathered=False)
    assert [m.receiver for m in sent] == list(target)
    assert {(m.begin, m.end) for m in sent} == {(0, size)}
    # Round robin: no source sends two more than another.
    counts = [sum(m.sender == a for m in sent) for a in source]
    assert max(counts) - min(counts) <= 1


@given(source=sets, target=sets, size=st.integers(0, 40))
def test_pieces_that_are_gathered_make_up_the_value(source: tuple[int, ...], target: tuple[int, ...], size: int):
    sent = messages(source, target, size, sharded=False, gathered=True)
    assert [m.receiver for m in sent] == list(target)
    assert [m.begin for m in sent] == [0, *(m.end for m in sent[:-1])]
    assert sent[-1].end == size
    assert max(m.end - m.begin for m in sent) <= -(-size // len(target))


@given(source=sets, target=sets, size=st.integers(0, 40))
def test_shares_come_from_those_who_hold_them(source: tuple[int, ...], target: tuple[int, ...], size: int):
    sent = messages(source, target, size, sharded=True, gathered=False)
    assert len({(m.sender, m.receiver) for m in sent}) == len(sent)
    for t, b in enumerate(target):
        into = [m for m in sent if m.receiver == b]
        low, high = share(size, t, len(target))
        assert [m.begin for m in into] == [low, *(m.end for m in into[:-1])]
        assert into[-1].end == high
    for m in sent:
        low, high = share(size, source.index(m.sender), len(source))
        assert m.begin == m.end or low <= m.begin < m.end <= high


# --- programs --------------------------------------------------------------------------------


def listed(rows: Rows) -> list[tuple[int, int, int]]:
    """Kind, subject and micro-batch of each instruction."""
    return [(kind, subject, microbatch) for kind, subject, _, _, microbatch, _, _, _ in rows.tolist()]


def chain(moment: int = 4, sets: Sequence[Sequence[int]] = ((0,), (1,)), **options: bool) -> Pipeline:
    """Operator 0 takes [0, 4), operator 1 reads it at 9 and takes 4; the period is 5."""
    a, b = (tuple(s) for s in sets)
    value, output = Value(0, 0, 8, options.get("sharded", False)), Value(1, 0, 8, kept=True)
    operators = (Operator((a,), (0,)), Operator((b,), (9,)))
    move = Move(0, 1, (b,), (moment,), (options.get("gathered", False),))
    return Pipeline(5, operators, (value, output), (Read(1, 0, 1, 0),), (move,))


def test_sections_of_a_chain():
    programs = build(chain())
    assert (programs.base, programs.step, programs.trips) == (1, 1, None)
    first, second = programs.of[0], programs.of[1]
    assert listed(first.prologue) == [(COMPUTE, 0, 0), (SEND, 0, 0), (FREE, 0, 0)]
    assert listed(first.kernel) == [(COMPUTE, 0, 1), (SEND, 0, 1), (FREE, 0, 1)]
    assert listed(first.epilogue) == []
    # The value of the next micro-batch and the operator share the moment 4 of the period; the earlier comes first.
    assert listed(second.prologue) == [(RECV, 0, 0)]
    assert listed(second.kernel) == [(COMPUTE, 1, 0), (FREE, 0, 0), (RECV, 0, 1)]
    assert listed(second.epilogue) == [(COMPUTE, 1, 0), (FREE, 0, 0)]


@pytest.mark.parametrize(("count", "base", "trips"), [(1, 1, 0), (2, 1, 1), (7, 1, 6)])
def test_a_number_of_microbatches_becomes_trips(count: int, base: int, trips: int):
    programs = build(chain(), count)
    assert (programs.base, programs.trips) == (base, trips)
    assert len(programs.of[0].kernel) == (3 if trips else 0)


def test_copies_make_longer_trips():
    pipeline = chain()
    copies = Operator(((1,), (2,), (3,)), (9,))
    move = Move(0, 1, ((1,), (2,), (3,)), (4,))
    programs = build(Pipeline(5, (pipeline.operators[0], copies), pipeline.values, pipeline.reads, (move,)), 8)
    assert (programs.base, programs.step, programs.trips) == (2, 3, 2)
    assert listed(programs.of[0].kernel)[::3] == [(COMPUTE, 0, 1), (COMPUTE, 0, 2), (COMPUTE, 0, 3)]
    assert [x for x in listed(programs.of[2].kernel) if x[0] == COMPUTE] == [(COMPUTE, 1, 1)]


def test_an_accelerator_of_both_sets_copies():
    programs = build(chain(sets=((0, 1), (1, 2)), sharded=True))
    kinds = [kind for kind, _, _ in listed(programs.of[1].prologue)]
    # It holds [4:8] of the value and needs [0:4]; accelerator 2 needs what it holds.
    assert kinds == [COMPUTE, RECV, SEND, FREE]
    whole = build(chain(sets=((0, 1), (1, 2)), gathered=True))
    assert [kind for kind, _, _ in listed(whole.of[1].prologue)] == [COMPUTE, RECV, SEND, FREE, ALL_GATHER]
    same = build(chain(sets=((0,), (0, 1))))
    assert [kind for kind, _, _ in listed(same.of[0].prologue)] == [COMPUTE, COPY, SEND, FREE]


def test_too_many_instructions_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "MOST_INSTRUCTIONS", 10)
    with pytest.raises(TooLong) as failure:
        build(chain())
    assert failure.value.instructions > 10


def test_construction_is_deterministic():
    one, two = (build(chain(sets=((0, 1), (1, 2)), sharded=True), 5) for _ in range(2))
    for p, program in one.of.items():
        for section in ("prologue", "kernel", "epilogue"):
            assert np.array_equal(getattr(program, section), getattr(two.of[p], section))
