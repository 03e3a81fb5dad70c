"""The assignment to nested blocks, by integer program and by constraint program, against enumeration."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.scheduling.budget import Budget
from passes.scheduling.nested import Assigned, Blocks, Choice, Place, Window, assign, exact, improve, loads_of
from passes.scheduling.nested_milp import assign as integer_program

WIDTHS, COUNT = (1, 2, 4), 4
BLOCKS = Blocks(WIDTHS, COUNT)


def heaviest(places: list[Place]) -> int:
    return max(loads_of(places, COUNT))


def everywhere(columns: list[list[Choice]]) -> list[tuple[Place, ...]]:
    """Every choice and aligned block of every operation."""
    places = [[(c, b) for c in choices for b in range(0, COUNT, c.width)] for choices in columns]
    return list(product(*places))


def least(columns: list[list[Choice]]) -> int:
    """The least period over all of them."""
    return min(heaviest(list(pick)) for pick in everywhere(columns))


def choices(table: dict[int, int], params: int = 0) -> list[Choice]:
    return [Choice(k, k, time, params) for k, time in sorted(table.items())]


TABLES = st.dictionaries(st.sampled_from(WIDTHS), st.integers(1, 40), min_size=1)


@settings(max_examples=40, deadline=None)
@given(tables=st.lists(TABLES, min_size=1, max_size=4))
def test_the_assignments_are_optimal(tables: list[dict[int, int]]) -> None:
    columns = [choices(table) for table in tables]
    best = least(columns)
    most = sum(max(t.values()) for t in tables) + 1
    found, bound = integer_program(columns, WIDTHS, COUNT, most, 0, Budget())
    assert found is not None
    assert all(c in each and b % c.width == 0 for (c, b), each in zip(found, columns, strict=True))
    assert heaviest(found) == best == bound
    first = [(each[0], 0) for each in columns]
    for begin in ((), first):
        program = exact(columns, BLOCKS, most, places=begin, work=10.0, budget=Budget())
        assert program is not None
        assert heaviest([program.places[v] for v in range(len(columns))]) == program.heaviest == program.bound == best


def test_only_a_shorter_period_is_an_answer_of_the_integer_program() -> None:
    columns = [choices({1: 10})] * 8
    assert integer_program(columns, WIDTHS, COUNT, 20, 0, Budget()) == (None, 20)
    found, _ = integer_program(columns, WIDTHS, COUNT, 21, 0, Budget())
    assert found is not None
    assert heaviest(found) == 20


def test_large_programs_are_not_tried() -> None:
    columns = [choices({1: t}) for t in range(1, 3000)]
    assert integer_program(columns, WIDTHS, COUNT, 10**6, 7, Budget()) == (None, 7)
    assert exact(columns, BLOCKS, 10**6, work=1.0, budget=Budget()) is None


def test_the_solver_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    integer_program([choices({1: 3}), choices({1: 4})], WIDTHS, COUNT, 100, 0, Budget())
    assert capfd.readouterr() == ("", "")


# --- windows -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data(), tables=st.lists(TABLES, min_size=1, max_size=6))
def test_a_search_over_windows_keeps_places_valid_and_never_gets_worse(
    data: st.DataObject, tables: list[dict[int, int]]
) -> None:
    columns = [choices(table) for table in tables]
    start = [(each[0], data.draw(st.sampled_from(BLOCKS.starts(each[0].width)))) for each in columns]
    after = improve(columns, start, BLOCKS, 0, budget=Budget(work=0.05))
    assert heaviest(after) <= heaviest(start)
    assert all(c in each and b % c.width == 0 for (c, b), each in zip(after, columns, strict=True))
    assert after == improve(columns, start, BLOCKS, 0, budget=Budget(work=0.05)), "same seed and budget, same places"


def test_a_window_starts_with_what_runs_around_it() -> None:
    columns = {0: choices({1: 5}), 1: choices({1: 4, 2: 2})}
    window = Window(2, {0: 10, 2: 3}, {0: 0, 2: 0})
    found = assign(columns, BLOCKS, window, 20, budget=Budget())
    assert isinstance(found, Assigned)
    assert found.heaviest == found.bound == 10, "both fit beside the lighter load"
    assert {b for _, b in found.places.values()} <= {2, 3}


def test_windows_respect_the_bytes_of_parameters() -> None:
    columns = {v: choices({1: 1}, params=6) for v in range(4)}
    window = Window(4, {0: 0}, {0: 0})
    found = assign(columns, BLOCKS, window, 20, room=6, budget=Budget())
    assert found is not None
    assert sorted(b for _, b in found.places.values()) == [0, 1, 2, 3]
    assert assign(columns, BLOCKS, window, 20, room=5, budget=Budget()) is None


def test_a_spent_budget_stops_the_search() -> None:
    columns = [choices({1: 7}), choices({1: 7})]
    start = [(columns[0][0], 0), (columns[1][0], 0)]
    assert improve(columns, start, BLOCKS, 0, budget=Budget(work=0.0)) == start
