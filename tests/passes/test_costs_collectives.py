"""Formulas of kernels and collectives against hand-computed figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.costs.collectives import Collective, Pattern, collective_ns, volume
from passes.costs.machine import Link, Machine, MissingRateError
from passes.costs.table import candidates

NODE, CLUSTER = Link("node", 8, 30_000, 100_000_000_000), Link("cluster", 64, 100_000, 10_000_000_000)
MACHINE = Machine(
    64,
    bandwidth=10**12,
    launch=1000,
    peak={"bf16": 10**14},
    compute_efficiency=0.5,
    memory_efficiency=0.5,
    saturation=10**9,
    links=(NODE, CLUSTER),
)


@pytest.mark.parametrize(
    ("pattern", "sent"),
    [
        ("all_reduce", 1_500_000),
        ("all_gather", 750_000),
        ("reduce_scatter", 750_000),
        ("all_to_all", 187_500),
        ("broadcast", 1_000_000),
    ],
)
def test_bytes_that_each_of_four_sends_of_a_megabyte(pattern: Pattern, sent: int):
    assert volume(pattern, 1_000_000, 4) == sent


def test_an_all_reduce_inside_a_node():
    # 2 * 7/8 * 8e6 bytes at 100 GB/s: 140 us, after 30 us
    assert collective_ns(MACHINE, Collective("all_reduce", 8_000_000, 8)) == 170_000


@pytest.mark.parametrize(("k", "link"), [(2, NODE), (8, NODE), (9, CLUSTER), (64, CLUSTER), (65, None)])
def test_a_group_spans_the_innermost_level_that_holds_it(k: int, link: Link | None):
    assert MACHINE.link(k) == link


@pytest.mark.parametrize("collective", [Collective("all_reduce", 10**9, 1), Collective("all_gather", 0, 8)])
def test_nothing_to_communicate_takes_no_time(collective: Collective):
    assert collective_ns(MACHINE, collective) == 0


def test_a_platform_without_links_communicates_for_free():
    assert collective_ns(Machine(4, 1, 0, {}), Collective("all_reduce", 10**9, 4)) == 0


@given(st.integers(2, 64), st.integers(1, 10**9))
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(k: int, size: int):
    halves = volume("reduce_scatter", size, k) + volume("all_gather", size, k)
    assert volume("all_reduce", size, k) == pytest.approx(halves)


def test_saturation_is_the_work_that_reaches_half_the_rate():
    # 1 GFLOP at half of 50 TFLOP/s takes 40 us; 99 GFLOP run at 99 % of it.
    assert MACHINE.compute_ns(10**9, "bf16") == pytest.approx(40_000)
    assert MACHINE.compute_ns(99 * 10**9, "bf16") == pytest.approx(2_000_000)
    assert MACHINE.compute_ns(0, "bf16") == 0


def test_a_kernel_takes_the_longer_of_computing_and_moving_after_its_launch():
    assert MACHINE.kernel_ns(10**9, "bf16", 10**6) == pytest.approx(1000 + 40_000)
    assert MACHINE.kernel_ns(10**9, "bf16", 10**8) == pytest.approx(1000 + 200_000)


def test_a_product_of_an_unknown_element_type_has_no_rate():
    with pytest.raises(MissingRateError) as caught:
        MACHINE.compute_ns(1, "f64")
    assert caught.value.dtype == "f64"


def test_candidates_tile_the_groups():
    assert candidates(MACHINE, 64, every=False) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert candidates(MACHINE, 20, every=False) == [1, 2, 4, 8, 16]
    assert candidates(MACHINE, 5, every=True) == [1, 2, 3, 4, 5]


def test_candidates_on_a_platform_of_one_group_are_all():
    assert candidates(Machine(6, 1, 0, {}, links=(Link("board", 6, 0, 1),)), 64, every=False) == [1, 2, 3, 4, 5, 6]
    assert candidates(Machine(3, 1, 0, {}), 64, every=False) == [1, 2, 3]
