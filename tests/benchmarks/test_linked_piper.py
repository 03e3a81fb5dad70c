"""Piper's model with links on small graphs of our own, and its published plans where its graph is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from suites.instances import Absent, instance_folder
from suites.piper_model import BANDWIDTH, Model, PiperLinks, bound, read_piper_linked, spelled_out
from suites.piper_search import search
from suites.piper_stages import contiguous, replicated

from passes.scheduling.data import Dependence
from passes.scheduling.linked_stages import partition_linked
from passes.scheduling.orders import topological_orders

MS = 1_000_000
SECOND_OF_BYTES = BANDWIDTH // 2
"""Bytes that cost each end a second."""


def node(number: int, ms: dict[int, float], reads: list[int], writes: list[int], **of: float) -> dict[str, Any]:
    """An operation; on several accelerators it synchronises a millisecond's bytes for each value."""
    modes: dict[str, list[dict[str, Any]]] = {}
    for k, time in ms.items():
        sync = 0 if k == 1 else SECOND_OF_BYTES // 1000
        common = {
            "parameterSize": of.get("params", 0) / k,
            "syncTimeFw": {str(u): sync for u in reads},
            "syncTimeBw": {str(w): sync for w in writes},
        }
        live, fixed = of.get("live", 0) / k, of.get("fixed", 0) / k
        modes[str(k)] = [
            {"id": "vanilla", "timePerSample": time / 1000, "memoryUsageA": live, "memoryUsageB": fixed, **common},
            {"id": "activation recomp", "timePerSample": 1.5 * time / 1000, "memoryUsageA": 0, "memoryUsageB": fixed}
            | common,
        ]
    return {"id": number, "name": "layer", "TMPCs": modes}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A value of 1 ms that all of five layers read, which pass 2 ms each to the next; 10 ms alone, 7 on two."""
    ms = {1: 10.0, 2: 7.0}
    nodes = [node(0, {1: 0.0, 2: 0.0}, [], [1, 2, 3, 4, 5])]
    edges = [(0, v, 1) for v in range(1, 6)] + [(v, v + 1, 2) for v in range(1, 5)]
    for v in range(1, 6):
        reads = [u for u, w, _ in edges if w == v]
        nodes.append(node(v, ms, reads, [v + 1] if v < 5 else [], live=100, fixed=30, params=1000))
    path = tmp_path / "graph.json"
    costs = [{"sourceId": u, "destId": v, "communicationCost": c * SECOND_OF_BYTES / 1000} for u, v, c in edges]
    path.write_text(json.dumps({"nodes": nodes, "edges": costs}))
    return path


def cuts(n: int) -> Iterator[list[int]]:
    for bits in range(2 ** (n - 1)):
        yield [0, *(i for i in range(1, n) if bits >> (i - 1) & 1), n]


def least_by_hand(model: Model, accelerators: int) -> float:
    """The least period in ms over all contiguous stages, each of one or two accelerators, memory not looked at."""
    network = model.problem.network
    assert isinstance(network, PiperLinks)
    best = float("inf")
    for order in topological_orders(model.problem):
        for ends in cuts(len(order)):
            stages = [order[i:j] for i, j in pairwise(ends)]
            for widths in range(2 ** len(stages)):
                width = [1 + (widths >> s & 1) for s in range(len(stages))]
                if sum(width) > accelerators:
                    continue
                loads: list[float] = []
                for stage, k in zip(stages, width, strict=True):
                    load = sum(model.problem.operations[v].table[k].time for v in stage) / MS
                    out: dict[int, list[float]] = {}
                    into: dict[int, list[float]] = {}
                    for d in model.problem.dependences:
                        if (d.producer in stage) != (d.consumer in stage):
                            ends_of = out if d.producer in stage else into
                            time = 2000 * d.bytes / BANDWIDTH + (k > 1)
                            ends_of.setdefault(d.producer, []).append(time)
                    once = sum if network.per_edge else max
                    loads.append(load + sum(map(once, out.values())) + sum(map(once, into.values())))
                best = min(best, max(loads))
    return best


@pytest.mark.parametrize("per_edge", [True, False])
@pytest.mark.parametrize("accelerators", [2, 3, 5])
def test_contiguous_stages_are_those_by_hand(graph: Path, per_edge: bool, accelerators: int) -> None:
    model = read_piper_linked(graph, accelerators, per_edge=per_edge)
    found = contiguous(model)
    assert found is not None
    assert found.period / MS == pytest.approx(least_by_hand(model, accelerators), abs=1e-4)
    assert bound(model) <= found.period
    _, schedule = spelled_out(model.problem, [v.time for v in found.variants], found.sets)
    assert schedule.period == found.period
    better = search(model, [found], 3000)
    assert better is not None
    assert bound(model) <= better.period <= found.period
    _, schedule = spelled_out(model.problem, [v.time for v in better.variants], better.sets)
    assert schedule.period == better.period
    if per_edge:
        assert found.period <= partition_linked(model.problem, tolerance=0).period


def test_each_end_of_a_copy_pays_its_own_synchronisation(graph: Path) -> None:
    network = read_piper_linked(graph, 4).problem.network
    assert isinstance(network, PiperLinks)
    d = Dependence(1, 2, SECOND_OF_BYTES * 2 // 1000)
    assert [round(t / MS, 3) for t in network.ends(d, 1, 2)] == [2, 3]
    assert round(network.price(d, (0,), (1, 2)).time / MS, 3) == 3
    assert network.price(d, (0,), (0,)).time == 0
    assert network.key(d, ((3,),)) != network.key(Dependence(1, 3, 1), ((3,),))


def test_memory_counts_the_stages_to_the_last(graph: Path) -> None:
    """Five stages of one layer: the first keeps what five micro-batches leave, 500 bytes and 30."""
    model = read_piper_linked(graph, 5, memory=530)
    sets = [(0,), (0,), (1,), (2,), (3,), (4,)]
    variants = [model.variants[v][1][0] for v in range(6)]
    assert model.windows(sets) == [5, 5, 4, 3, 2, 1]
    assert model.missing(sets, variants) == 0
    tight = read_piper_linked(graph, 5, memory=500)
    assert tight.missing(sets, variants) == 30
    assert contiguous(read_piper_linked(graph, 5, memory=100)) is None
    recomputed = contiguous(read_piper_linked(graph, 5, memory=100, recompute=True))
    assert recomputed is not None
    assert {v.live for v in recomputed.variants} == {0}


def test_copies_divide_everything_but_synchronise(graph: Path) -> None:
    model = read_piper_linked(graph, 4)
    found = replicated(model, 10**9, 5)
    assert found is not None
    assert found.copies == (4,)
    assert found.period == 50 * MS // 4 + 3 * 5000 // 5  # 4·(3/4)·5000 bytes at 1 GB/s, shared by 5 micro-batches


@pytest.mark.parametrize(
    ("accelerators", "gigabytes", "recompute", "microseconds"),
    [(8, 0, False, 164515.75), (16, 8, False, 123036.25), (8, 8, True, 165855.75), (32, 0, False, 73906.25)],
)
def test_the_plans_of_piper_are_found(accelerators: int, gigabytes: int, recompute: bool, microseconds: float) -> None:
    try:
        path = instance_folder("piper") / "bert32a100.json"
    except Absent as reason:
        pytest.skip(str(reason))
    found = contiguous(read_piper_linked(path, accelerators, memory=gigabytes * 2**30, recompute=recompute))
    assert found is not None
    assert found.period / 1000 == pytest.approx(microseconds, abs=0.01)
