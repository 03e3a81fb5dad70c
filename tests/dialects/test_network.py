"""What a transfer takes and occupies: by hand, and against the solver's account of the same on random networks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialects.network import STAYS, Link, Network, Resource
from passes.scheduling import network as solver

MODES = ("overlapped", "blocking", "buffered")


def ports(kind: Any, level: int, *accelerators: int) -> set[Resource]:
    return {Resource(kind, level, p, p) for p in accelerators}


def wires(level: int, *pairs: tuple[int, int]) -> set[Resource]:
    return {Resource("wire", level, a, b) for a, b in pairs}


@pytest.fixture
def two() -> Network:
    """Nodes of 4 at 1 byte/ns after 10 ns, four of them at 1 byte in 10 ns after 100 ns."""
    return Network((Link("node", 4, 10, 10**9), Link("cluster", 16, 100, 10**8)))


def test_nothing_moves_between_equal_sets_without_bytes_or_links(two: Network) -> None:
    assert two.way(100, False, (0, 1), (0, 1)) == STAYS
    assert two.way(0, False, (0,), (1,)) == STAYS
    assert Network(()).way(100, False, (0,), (1,)) == STAYS
    assert not STAYS.moves


def test_the_level_is_the_innermost_that_holds_both(two: Network) -> None:
    assert two.way(100, True, (0, 1), (2, 3)).level == 0
    assert two.way(100, True, (0, 1), (3, 4)).level == 1
    assert two.level((4, 7)) == 0
    assert two.level((7, 8)) == 1


def test_shares_go_to_where_their_places_are(two: Network) -> None:
    """One accelerator sends 51 of 102 bytes to each of two; three shares of 34 bytes overlap two shares of 51."""
    way = two.way(102, True, (0,), (2, 3))
    assert (way.time, way.sender) == (10 + 102, ports("send port", 0, 0))
    assert way.receiver == ports("receive port", 0, 2, 3)
    way = two.way(102, True, (0, 1, 2), (4, 5))
    assert way.time == 100 + 10 * 51
    assert way.sender == ports("send port", 1, 0, 1, 2)


def test_whole_values_are_cut_and_gathered_where_that_is_faster(two: Network) -> None:
    """To four accelerators of another node: 4 * 1000 B whole, or 4 * 250 B and 750 B more among themselves."""
    way = two.way(1000, False, (0,), (4, 5, 6, 7))
    assert way.time == 100 + 10 * 1000 + 10 + 750
    assert way.sender == ports("send port", 1, 0)
    around = ports("send port", 0, 4, 5, 6, 7) | ports("receive port", 0, 4, 5, 6, 7)
    assert way.receiver == ports("receive port", 1, 4, 5, 6, 7) | around
    whole = two.way(4, False, (0, 1), (2, 3))
    assert (whole.time, whole.receiver) == (14, ports("receive port", 0, 2, 3))
    # Only as many of the senders as there are targets take part.
    assert two.way(4, False, (0, 1), (2,)).sender == ports("send port", 0, 0)


def test_links_of_a_port_work_together_or_are_shared() -> None:
    together = Network((Link("node", 4, 10, 10**9, links=5),))
    assert together.way(100, True, (0,), (1,)).time == 30
    assert together.capacity(Resource("port", 0, 0, 0)) == 1
    shared = Network((Link("node", 4, 10, 10**9, links=5, shared=True),))
    assert shared.way(100, True, (0,), (1,)).time == 110
    assert shared.capacity(Resource("port", 0, 0, 0)) == 5
    assert shared.capacity(Resource("accelerator", -1, 0, 0)) == 1


def test_half_duplex_ports_are_one() -> None:
    half = Network((Link("node", 4, 10, 10**9, duplex=False),))
    way = half.way(100, True, (0,), (1,))
    assert way.sender == ports("port", 0, 0)
    assert way.receiver == ports("port", 0, 1)


def test_a_ring_goes_the_shorter_way_and_pays_for_every_hop() -> None:
    ring = Network((Link("ring", 6, 10, 10**9, topology="ring"),))
    way = ring.way(5, True, (0,), (2,))
    assert (way.time, way.sender) == (25, wires(0, (0, 1), (1, 2)))
    assert ring.way(5, True, (1,), (5,)).sender == wires(0, (1, 0), (0, 5))
    assert ring.way(5, True, (5,), (2,)).sender == wires(0, (5, 0), (0, 1), (1, 2))
    half = Network((Link("ring", 6, 10, 10**9, topology="ring", duplex=False),))
    assert half.way(5, True, (1,), (5,)).sender == wires(0, (0, 1), (0, 5))


def test_a_torus_goes_along_one_side_after_the_other() -> None:
    torus = Network((Link("torus", 12, 10, 10**9, topology="torus", shape=(3, 4)),))
    way = torus.way(5, True, (1,), (11,))  # (0, 1) to (2, 3): down to (2, 1), then (2, 2), (2, 3)
    assert way.sender == wires(0, (1, 9), (9, 10), (10, 11))
    assert way.time == 15 + 2 * 10


def test_an_outer_ring_joins_the_places_of_its_groups() -> None:
    rings = Network((Link("node", 4, 1, 10**9), Link("ring", 16, 10, 10**9, topology="ring")))
    assert rings.way(5, True, (1,), (10,)).sender == wires(1, (1, 5), (5, 9))
    full = Network((Link("node", 4, 1, 10**9), Link("full", 16, 10, 10**9, topology="full")))
    assert full.way(5, True, (1,), (10,)).sender == wires(1, (1, 9))


def test_places_count_from_the_group_not_from_zero() -> None:
    """Groups of 9 are no multiple of 2: the second begins at 9."""
    odd = Network((Link("pair", 2, 1, 10**9), Link("ring", 9, 10, 10**9, topology="ring"), Link("all", 18, 10, 10**9)))
    assert odd.way(5, True, (9,), (13,)).sender == wires(1, (9, 11), (11, 13))


def test_modes_say_what_stands_still() -> None:
    def way(mode: str) -> tuple[set[Resource], set[Resource]]:
        found = Network((Link("node", 4, 10, 10**9),), mode).way(100, False, (0, 1), (2,))
        return set(found.sender), set(found.receiver)

    out, into = ports("send port", 0, 0), ports("receive port", 0, 2)
    at, to = ports("accelerator", -1, 0), ports("accelerator", -1, 2)
    assert way("overlapped") == (out, into)
    assert way("blocking") == (out | at, into | to)
    assert way("buffered") == (at, to)


# --- the solver's account of the same ------------------------------------------------------------

KINDS = ("accelerator", "send port", "receive port", "port", "wire")


@st.composite
def networks(draw: st.DrawFn) -> tuple[Network, int]:
    """A network of one to three levels and the number of its accelerators; the last group may be incomplete."""
    links: list[Link] = []
    inner, levels = 1, draw(st.integers(1, 3))
    for number in range(levels):
        members = draw(st.integers(2 if inner > 1 else 1, 4))
        size = inner * members
        topology = draw(st.sampled_from(["switch", "ring", "torus", "full"]))
        side = draw(st.sampled_from([k for k in range(1, members + 1) if members % k == 0]))
        shape = (side, members // side) if topology == "torus" else ()
        if number == levels - 1 and topology != "torus" and number:
            size -= draw(st.integers(0, inner - 1))
        latency, bandwidth = draw(st.integers(0, 30)), draw(st.integers(1, 5)) * 10**8
        count, duplex, shared = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans())
        links.append(Link(f"l{number}", size, latency, bandwidth, count, topology, shape, duplex, shared))
        inner = size
    return Network(tuple(links), draw(st.sampled_from(MODES))), inner


def twin(network: Network) -> solver.Network:
    levels = [
        solver.Level(
            link.name,
            link.size,
            link.latency,
            link.bandwidth,
            link.links,
            link.topology,  # type: ignore[arg-type]
            link.shape,
            link.duplex,
            link.shared,
        )
        for link in network.links
    ]
    return solver.Network(tuple(levels), network.mode)  # type: ignore[arg-type]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), made=networks(), sharded=st.booleans(), size=st.integers(0, 200))
def test_the_solver_prices_alike(data: st.DataObject, made: Any, sharded: bool, size: int) -> None:
    network, count = made
    sets = st.sets(st.integers(0, count - 1), min_size=1, max_size=6).map(lambda s: tuple(sorted(s)))
    source, target = data.draw(sets), data.draw(sets)
    way, other = network.way(size, sharded, source, target), twin(network)
    price = other.price_of(size, sharded, source, target)
    assert (way.level, way.time) == (price.level, price.time)
    for mine, theirs in ((way.sender, price.send), (way.receiver, price.receive)):
        assert mine == {Resource(KINDS[kind], level, a, b) for kind, level, a, b in theirs}  # type: ignore[arg-type]
    for kind, level, a, b in price.both:
        assert network.capacity(Resource(KINDS[kind], level, a, b)) == other.capacity((kind, level, a, b))  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), made=networks())
def test_routes_lead_from_wire_to_wire(data: st.DataObject, made: Any) -> None:
    """A message between two accelerators passes wires that follow on one another, none of them twice."""
    network, count = made
    a, b = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count - 1))
    way = network.way(10, True, (a,), (b,))
    found = sorted(r for r in way.sender if r.kind == "wire")
    link = network.links[way.level]
    if found and link.duplex:
        nexts = {r.at: r.to for r in found}
        assert len(nexts) == len(found)
        at, passed = a, 0
        while at in nexts:
            at, passed = nexts[at], passed + 1
        assert passed == len(found)
        inner = network.links[way.level - 1].size if way.level else 1
        assert at // inner == b // inner
        assert way.time == link.ns(10) + (passed - 1) * link.latency
