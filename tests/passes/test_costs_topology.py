"""Collectives on rings, tori, direct links, several levels, and from measured tables, against hand-computed figures.

A link carries a byte a nanosecond unless said otherwise.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.costs.collectives import Collective, Pattern, collective_ns, interpolated
from passes.costs.machine import NS_PER_S, Link, Machine

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


def machine(*links: Link, **more: Any) -> Machine:
    return Machine(links[-1].size, 1, 0, {}, links=links, **more)


def level(size: int, latency: int = 0, rate: int = 1, **more: Any) -> Link:
    return Link(f"of{size}", size, latency, rate * NS_PER_S, **more)


def times(on: Machine, size: int, k: int) -> dict[str, float]:
    return {p: round(collective_ns(on, Collective(p, size, k)), 6) for p in PATTERNS}


def expected(all_reduce: float, all_gather: float, all_to_all: float, broadcast: float) -> dict[str, float]:
    return {
        "all_reduce": all_reduce,
        "all_gather": all_gather,
        "reduce_scatter": all_gather,
        "all_to_all": all_to_all,
        "broadcast": broadcast,
    }


@pytest.mark.parametrize(
    ("link", "k", "figures"),
    [
        # A switch: 2 * 3/4, 3/4, 3/4 * 1/4 of 1600 bytes, and all of them.
        ({}, 4, (2400, 1200, 300, 1600)),
        ({"links": 2}, 4, (1200, 600, 150, 800)),
        ({"links": 2, "shared": True}, 4, (2400, 1200, 300, 1600)),
        ({"duplex": False}, 4, (4800, 2400, 600, 3200)),
        # Two on a half-duplex switch: nobody passes a broadcast on.
        ({"duplex": False}, 2, (3200, 1600, 800, 1600)),
        # A ring of eight: half of everything each way round. Exchange: 16 pairs of 25 bytes cross the middle in each
        # direction, on two connections.
        ({"topology": "ring"}, 8, (1400, 700, 200, 800)),
        ({"topology": "ring", "duplex": False}, 8, (2800, 1400, 400, 1600)),
        # Four of them: a line. Exchange: 4 pairs of 100 bytes over the one connection in the middle.
        ({"topology": "ring"}, 4, (2400, 1200, 400, 1600)),
        ({"topology": "ring", "duplex": False}, 4, (4800, 2400, 800, 1600)),
        # Each with each: a quarter goes over each of three connections; a broadcast sends them different thirds.
        ({"topology": "full"}, 4, (800, 400, 100, 1600 / 3)),
        ({"topology": "full", "duplex": False}, 4, (1600, 800, 200, 3200 / 3)),
        ({"topology": "full"}, 2, (1600, 800, 400, 1600)),
    ],
)
def test_one_level_of_eight(link: dict[str, Any], k: int, figures: tuple[float, ...]):
    assert times(machine(level(8, **link)), 1600, k) == pytest.approx(expected(*figures))


@pytest.mark.parametrize(
    ("k", "figures"),
    [
        # One row: a ring of four.
        (4, (1200, 600, 200, 800)),
        # Two members of a row: a line.
        (2, (1600, 800, 400, 1600)),
        # Two rows: the line of two while each holds an eighth (200), then rows of four, 3 * 400 both ways (600).
        # Exchange in the row: 4 * 4 pairs of 25 bytes cross the middle of two rows, on two connections each;
        # between the rows: 4 * 4 pairs of 25 bytes on four connections.
        (8, (1600, 800, 100, 1600)),
        # All: rings of four, 3 * 100 and 3 * 400 bytes both ways. Exchange: 64 pairs of 6.25 bytes cross the
        # middle in each direction, on eight connections.
        (16, (1500, 750, 50, 800)),
        # Six fill no box: a line, 5/6 through its ends; 9 pairs of 400/9 bytes cross its middle.
        (6, (2 * 5 / 6 * 1600, 5 / 6 * 1600, 400, 1600)),
    ],
)
def test_a_torus_of_four_by_four(k: int, figures: tuple[float, ...]):
    on = machine(level(16, topology="torus", shape=(4, 4)))
    assert times(on, 1600, k) == pytest.approx(expected(*figures))


def test_each_dimension_of_a_torus_starts_once():
    on = machine(level(16, latency=7, topology="torus", shape=(4, 4)))
    idle = machine(level(16, topology="torus", shape=(4, 4)))
    for k, starts in ((4, 1), (16, 2)):
        more = {p: t - times(idle, 1600, k)[p] for p, t in times(on, 1600, k).items()}
        assert more == pytest.approx(expected(7 * starts, 7 * starts, 7, 7 * starts))


def test_a_ring_of_two_has_one_connection():
    assert times(machine(level(2, topology="ring")), 1600, 2) == pytest.approx(expected(1600, 800, 400, 1600))


# --- several levels -------------------------------------------------------------------------------


def test_beyond_a_group_the_faster_of_flat_and_hierarchical():
    # Four groups of four; inside ten times as fast. A flat ring of 16: 10 + 15/8 S. Inside, across, inside:
    # 1 + 3/40 S, 10 + 2 * 3/4 * S/4, 1 + 3/40 S.
    on = machine(level(4, 1, 10), level(16, 10))
    small, large = 1, 16_000
    assert collective_ns(on, Collective("all_reduce", small, 16)) == pytest.approx(10 + 15 / 8 * small)
    assert collective_ns(on, Collective("all_reduce", large, 16)) == pytest.approx(12 + (6 / 40 + 3 / 8) * large)
    assert times(on, large, 16) == pytest.approx(
        expected(
            12 + 8400,
            # across a quarter of it, 3/4 * S/4; inside 3/40 S
            11 + 3000 + 1200,
            # straight across: each sends 12/256 S; what stays inside is less and faster
            10 + 12 / 256 * large,
            # a scatter inside, S/4 across, a gather inside
            12 + 1200 + 4000 + 1200,
        )
    )


def test_a_flat_ring_is_as_slow_as_its_slowest_link():
    on = machine(level(4, 1, 1), level(16, 10, 100))
    assert collective_ns(on, Collective("all_reduce", 1600, 6)) == pytest.approx(10 + 2 * 5 / 6 * 1600)


def test_groups_that_are_not_filled_run_flat():
    on = machine(level(4, 1, 10), level(16, 10))
    assert collective_ns(on, Collective("all_gather", 16_000, 6)) == pytest.approx(10 + 5 / 6 * 16_000)
    assert collective_ns(on, Collective("all_gather", 16_000, 8)) < 5 / 6 * 16_000


def test_groups_on_a_ring():
    # Eight groups of two around a ring. Across: half of S/2 each way, 7/8 of it; inside 1/2 S at ten times the rate.
    on = machine(level(2, 1, 10), level(16, 10, topology="ring"))
    assert collective_ns(on, Collective("all_gather", 16_000, 16)) == pytest.approx(11 + 7 / 16 * 8000 + 800)
    # Exchange: S/2 on a ring of eight is S/2 / 8; inside two exchange S/8: a quarter of it, less time.
    assert collective_ns(on, Collective("all_to_all", 16_000, 16)) == pytest.approx(10 + 1000)


def test_three_levels():
    on = machine(level(2, 1, 100), level(4, 2, 10), level(8, 4, 1))
    # Inside a group of four: in pairs 1/2 S at 100, across 1/2 of S/2 at 10. Across the two groups: 1/2 of S/4 at 1.
    size = 80_000
    inside = 1 + size / 200 + 2 + size / 40
    assert collective_ns(on, Collective("reduce_scatter", size, 4)) == pytest.approx(inside)
    assert collective_ns(on, Collective("reduce_scatter", size, 8)) == pytest.approx(inside + 4 + size / 8)


# --- what holds of all of them ----------------------------------------------------------------------

LINKS = st.builds(
    dict,
    topology=st.sampled_from(["switch", "ring", "full", "torus"]),
    duplex=st.booleans(),
    links=st.integers(1, 3),
    shared=st.booleans(),
)


def drawn(link: dict[str, Any], size: int, members: tuple[int, int], latency: int) -> Link:
    return level(size, latency, 1, shape=members if link["topology"] == "torus" else (), **link)


@given(LINKS, LINKS, st.sampled_from(PATTERNS), st.integers(1, 10**6), st.integers(2, 48))
def test_more_bytes_take_no_less_and_half_duplex_no_less(
    inner: dict[str, Any], outer: dict[str, Any], pattern: Pattern, size: int, k: int
):
    def time(size: int, duplex: bool | None = None) -> float:
        change = {} if duplex is None else {"duplex": duplex}
        on = machine(drawn(inner | change, 8, (2, 4), 3), drawn(outer | change, 48, (3, 2), 50))
        return collective_ns(on, Collective(pattern, size, k))

    assert 0 < time(size) <= time(size + 1)
    assert time(size, duplex=True) <= time(size, duplex=False) <= 2 * time(size, duplex=True)


@given(LINKS, st.integers(2, 16), st.integers(1, 10**6))
def test_no_collective_beats_what_an_accelerator_must_receive(link: dict[str, Any], k: int, size: int):
    """All-gather: an accelerator lacks (k-1)/k of the tensor, and has so many links."""
    on = drawn(link, 16, (4, 4), 0)
    degree = {"switch": 1, "ring": 2, "torus": 4, "full": k - 1}[link["topology"]]
    least = size * (k - 1) / k / (degree * on.rate / NS_PER_S)
    assert collective_ns(machine(on), Collective("all_gather", size, k)) >= least * (1 - 1e-9)


# --- measured tables --------------------------------------------------------------------------------

TABLE = ((1000, 500), (2000, 700), (4000, 1500))


@pytest.mark.parametrize(
    ("size", "ns"), [(1, 500), (1000, 500), (1500, 600), (2000, 700), (3000, 1100), (4000, 1500), (8000, 3100)]
)
def test_between_measured_sizes_times_are_on_a_line(size: int, ns: float):
    assert interpolated(TABLE, size) == pytest.approx(ns)


def test_measured_times_that_fall_stay_level_beyond_the_last():
    assert interpolated(((1000, 500), (2000, 400)), 10_000) == 400
    assert interpolated(((1000, 500), (2000, 400)), 1500) == 450


def test_a_table_holds_for_its_pattern_and_number_only():
    on = machine(level(8), measured={("all_reduce", 4): TABLE})
    assert collective_ns(on, Collective("all_reduce", 2000, 4)) == 700
    assert collective_ns(on, Collective("all_reduce", 2000, 8)) == pytest.approx(3500)
    assert collective_ns(on, Collective("all_gather", 2000, 4)) == pytest.approx(1500)
    assert collective_ns(on, Collective("all_reduce", 0, 4)) == 0


def test_the_hierarchical_algorithm_uses_tables_of_its_groups():
    free = {("reduce_scatter", 4): ((1, 0), (2, 0)), ("all_gather", 4): ((1, 0), (2, 0))}
    on = machine(level(4, 1, 10), level(16, 10), measured=free)
    assert collective_ns(on, Collective("all_reduce", 16_000, 16)) == pytest.approx(10 + 3 / 8 * 16_000)
