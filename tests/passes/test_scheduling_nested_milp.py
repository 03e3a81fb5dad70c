"""The integer program for nested blocks, against enumeration."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.nested_milp import Choice, assign

WIDTHS, COUNT = (1, 2, 4), 4


def heaviest(choice: list[Choice], first: list[int]) -> int:
    load = [0] * COUNT
    for (_, width, time), begin in zip(choice, first, strict=True):
        for p in range(begin, begin + width):
            load[p] += time
    return max(load)


def least(columns: list[list[Choice]]) -> int:
    """The least period over every choice and aligned block of every operation."""
    places = [[(c, b) for c in choices for b in range(0, COUNT, c[1])] for choices in columns]
    return min(heaviest([c for c, _ in pick], [b for _, b in pick]) for pick in product(*places))


TABLES = st.dictionaries(st.sampled_from(WIDTHS), st.integers(1, 40), min_size=1)


@settings(max_examples=40, deadline=None)
@given(tables=st.lists(TABLES, min_size=1, max_size=4))
def test_the_assignment_is_optimal(tables: list[dict[int, int]]) -> None:
    columns = [[(k, k, time) for k, time in sorted(table.items())] for table in tables]
    most = sum(max(t.values()) for t in tables) + 1
    found = assign(columns, WIDTHS, COUNT, most, 0, 20.0)
    assert found is not None
    choice, first = found
    assert all(c in each and b % c[1] == 0 for c, b, each in zip(choice, first, columns, strict=True))
    assert heaviest(choice, first) == least(columns)


def test_only_a_shorter_period_is_an_answer() -> None:
    columns = [[(1, 1, 10)]] * 8
    assert assign(columns, WIDTHS, COUNT, 20, 0, 20.0) is None
    found = assign(columns, WIDTHS, COUNT, 21, 0, 20.0)
    assert found is not None
    assert heaviest(*found) == 20


def test_a_large_program_is_not_tried() -> None:
    assert assign([[(1, 1, t)] for t in range(1, 400)], WIDTHS, COUNT, 10**6, 0, 20.0) is None


def test_the_solver_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assign([[(1, 1, 3)], [(1, 1, 4)]], WIDTHS, COUNT, 100, 0, 20.0)
    assert capfd.readouterr() == ("", "")
