"""Readers of outside instances on small files of our own, baselines by hand, and the command once, quickly."""

from __future__ import annotations

import bz2
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from suites import growth, instances, linked_partitioning
from suites.baselines import BASELINES, layer_of
from suites.plans import PLANS, Outcome, bound_with_copies, measure, plan, with_bound
from suites.rivals import one_width
from suites.table import Table

from passes.scheduling.assigned import assign, scheduled
from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, Operation, Solution
from passes.scheduling.objective import Limits
from passes.scheduling.portfolio import Request
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.recurrence import recurrence_bound

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scheduling.py"


def test_partitioning_graph_keeps_colors_and_times(tmp_path: Path) -> None:
    nodes = [
        {"id": 7, "fpgaLatency": 1.5, "colorClass": 3},
        {"id": 9, "fpgaLatency": 0.25, "colorClass": 4, "name": "b"},
        {"id": 8, "fpgaLatency": 2, "colorClass": 3},
        {"id": 1, "fpgaLatency": 0},
    ]
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"nodes": nodes, "edges": [{"sourceId": 7, "destId": 9}, {"sourceId": 9, "destId": 8}]}))
    given = instances.read_partitioning(path, 2)
    assert [o.table[1].time for o in given.operations] == [1_500_000, 250_000, 2_000_000, 0]
    assert given.together == ((0, 2),)
    assert [(d.producer, d.consumer) for d in given.dependences] == [(0, 1), (1, 2)]
    assert given.accelerators == 2


def test_linked_partitioning_graph_has_the_cost_model_of_the_suite(tmp_path: Path) -> None:
    """Values leave once and enter once for each accelerator; members of a color store all their bytes together."""
    nodes = [
        {"id": 7, "fpgaLatency": 1.5, "colorClass": 3, "size": 10.0},
        {"id": 9, "fpgaLatency": 0.25, "size": 5.0},
        {"id": 8, "fpgaLatency": 2, "colorClass": 3, "size": 20.0},
        {"id": 1, "fpgaLatency": 0.75, "size": 40.0},
    ]
    edges = [
        {"sourceId": 7, "destId": 9, "cost": 0.5},
        {"sourceId": 7, "destId": 1, "cost": 0.5},
        {"sourceId": 9, "destId": 8, "cost": 0.125},
        {"sourceId": 9, "destId": 1, "cost": 0.125},
    ]
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"nodes": nodes, "edges": edges, "maxFPGAs": 2, "maxSizePerFPGA": 100.0}))
    problem = instances.read_linked_partitioning(path)
    problem.check()
    assert problem.accelerators == 2
    assert problem.together == ((0, 2),)
    found = assign(problem, gap=0.0, budget=Budget(work=1.0))
    assert found.bound == found.heaviest == 3_500_000 + 500_000 + 125_000
    solution = scheduled(problem, found, Budget(work=1.0))
    assert solution.period == found.heaviest
    assert linked_partitioning.heaviest_load(path, solution) == pytest.approx(4.125)
    assert {t.producer for t in solution.transfers} == {0, 1}
    params = {p: held for p, (held, _) in problem.peak_memory(solution).items()}
    assert sorted(params.values()) == [30, 45]


def test_piper_graph_is_moldable_and_ignores_recomputation(tmp_path: Path) -> None:
    modes = {
        "1": [{"id": "activation recomp", "timePerSample": 0.001}, {"id": "vanilla", "timePerSample": 0.004}],
        "2": [{"id": "vanilla", "timePerSample": 0.003}],
    }
    nodes = [{"id": i, "name": "layer", "TMPCs": modes} for i in range(2)]
    path = tmp_path / "bert.json"
    path.write_text(json.dumps({"nodes": nodes, "edges": [{"sourceId": 0, "destId": 1}]}))
    problem = instances.read_piper(path, 4)
    first, second = problem.operations
    assert {k: c.time for k, c in first.table.items()} == {1: 4_000_000, 2: 3_000_000}
    assert first.table is second.table


LOOP = """<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph>
<node id="a"><data key="uses_resource">mul</data></node><node id="b"><data key="uses_resource">add</data></node>
<edge id="1" source="a" target="b"><data key="delay">1</data><data key="distance">0</data></edge>
<edge id="2" source="b" target="a"><data key="delay">0</data><data key="distance">2</data></edge>
</graph></graphml>"""


def test_loop_counts_latencies_and_delays_over_distances(tmp_path: Path) -> None:
    graph, resources = tmp_path / "loop.graphml", tmp_path / "resources.xml"
    graph.write_text(LOOP)
    root = ElementTree.Element("ModelInformation")
    for name, latency in (("mul", "5"), ("add", "1")):
        ElementTree.SubElement(root, "Resource", name=name, latency=latency, limit="1", blockingTime="1")
    ElementTree.ElementTree(root).write(resources)
    bound = recurrence_bound(instances.read_loop(graph, resources))
    assert bound is not None
    assert bound.value == 4  # (5 + 1 + 1) cycles over two iterations


def test_moldable_sets(tmp_path: Path) -> None:
    jobs, constraints = tmp_path / "jobs.csv", tmp_path / "constraints.csv"
    jobs.write_text("id,p0,p1\n0,2,3\n1,7,1\n")
    constraints.write_text("id0,id1\n0,0\n0,1\n1,1\n")
    problem = instances.read_malleable(jobs, constraints)
    assert [{k: c.time for k, c in o.table.items()} for o in problem.operations] == [
        {1: 2000, 2: 3000},
        {1: 7000, 2: 1000},
    ]
    assert [(d.producer, d.consumer) for d in problem.dependences] == [(0, 1)]

    tasks = tmp_path / "tasks.bz2"
    data = {"meta": {"n": 1, "m": 4}, "cpudata": {"nb_p": [1, 4], "t1": [9.5, 3.25]}, "gpudata": {}}
    tasks.write_bytes(bz2.compress(json.dumps(data).encode()))
    (operation,) = instances.read_independent(tasks).operations
    assert {k: c.time for k, c in operation.table.items()} == {1: 9500, 4: 3250}


def test_absent_data_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAKT_INSTANCES", str(tmp_path))
    monkeypatch.setenv("TAKT_GENERATOR", str(tmp_path / "inst.py"))
    with pytest.raises(instances.Absent, match="TAKT_INSTANCES"):
        instances.instance_folder("piper")
    with pytest.raises(instances.Absent, match="TAKT_GENERATOR"):
        instances.generator()


def test_every_outside_file_that_is_here_is_sane() -> None:
    try:
        folder = instances.instance_folder("dnn-partitioning")
        bert = instances.instance_folder("piper") / "bert32a100.json"
        make = instances.generator()
    except instances.Absent as reason:
        pytest.skip(str(reason))
    for path in sorted(folder.glob("LayerGraphs/*.json")):
        instances.read_partitioning(path, 4).check()
    instances.read_piper(bert, 8).check()
    study = instances.from_generator(make.gpt(2, 4))
    study.check()
    assert len(study.operations) == 2 * 13 + 4


def chain(tables: list[dict[int, int]], names: list[str], accelerators: int) -> MemoryProblem:
    operations = tuple(
        Operation(n, {k: Cost(t) for k, t in table.items()}) for n, table in zip(names, tables, strict=True)
    )
    return MemoryProblem(operations, tuple(Dependence(v, v + 1, 10) for v in range(len(names) - 1)), (), accelerators)


def test_layers_are_read_from_names() -> None:
    assert layer_of(["embed", "L0.q", "L0.k", "L1.q", "head"]) == [0, 0, 0, 1, 1]


def test_baselines_by_hand() -> None:
    times = [5, 1, 4, 4, 1, 5]
    names = [f"{layer}.{part}" for layer in (0, 1) for part in "abc"]
    problem = chain([{1: t} for t in times], names, 2)
    periods = {}
    for name, baseline in BASELINES.items():
        found = measure(name, baseline, problem, 5.0)
        assert found is not None
        periods[name.split(",")[0].split(" (")[0]] = found.period
    assert periods["equal layers"] == periods["equal widths"] == 10
    assert periods["equal widths and one special"] == 10
    assert periods["list scheduling"] >= 10


def test_one_special_block_takes_two_ranges() -> None:
    problem = chain([{1: t} for t in (2, 6, 4)], ["a", "b", "c"], 2)
    special = measure("special", BASELINES["equal widths and one special (MadPipe)"], problem, 5.0)
    contiguous = measure("stages", plan("stages"), problem, 5.0)
    assert special is not None
    assert contiguous is not None
    assert (special.period, contiguous.period) == (6, 8)


def test_every_plan_is_measured_through_the_portfolio() -> None:
    names = [f"{layer}.{part}" for layer in range(3) for part in "ab"]
    tables = [{1: 6, 2: 4}, {1: 3, 2: 2}] * 3
    problem = chain(tables, names, 4)
    bound = best_bound(problem).value
    periods: dict[str, int] = {}
    for name in (*PLANS, "list", "free", "replicated"):
        found = measure(name, with_bound(name, bound), problem, 5.0)
        assert isinstance(found, Outcome)
        assert name in (found.plan, "auto")
        assert found.step(3) == 2 * found.period + found.latency
        periods[name] = found.period
    copied = periods.pop("replicated")
    assert bound_with_copies(problem) <= copied
    assert min(periods.values()) >= bound
    assert periods["free"] <= periods["laminar"] <= periods["stages"]


def test_a_limit_asked_for_is_kept() -> None:
    problem = chain([{1: 4, 2: 3}] * 6, [str(v) for v in range(6)], 4)
    free = measure("stages", plan("stages"), problem, 5.0)
    limits = Limits(in_flight=2)
    tight = measure("auto", plan("auto", Request(limits=limits)), problem, 5.0)
    assert free is not None
    assert tight is not None
    assert free.in_flight > 2 >= tight.in_flight


def test_a_proof_says_that_nothing_is_shorter() -> None:
    problem = chain([{1: 2}] * 3, ["a", "b", "c"], 2)
    found = measure("free", with_bound("free", 3), problem, 5.0)
    assert found is not None
    assert (found.period, found.least) == (4, True)


def test_one_width_is_what_it_says() -> None:
    problem = chain([{1: 6, 2: 4}, {1: 2, 2: 1}, {1: 2, 2: 1}], ["0.a", "1.a", "1.b"], 3)
    widths = measure("one", lambda p, b: one_width(p, b, "operator"), problem, 5.0)
    own = measure("own", plan("stages"), problem, 5.0)
    assert widths is not None
    assert own is not None
    assert (widths.period, own.period) == (6, 4)


def test_crossing_counts_a_value_once_for_each_other_set() -> None:
    operations = tuple(Operation(str(v), {1: Cost(1)}) for v in range(4))
    problem = MemoryProblem(operations, tuple(Dependence(0, v, 10) for v in (1, 2, 3)), (), 2)
    solution = Solution(2, (1,) * 4, ((0,), (1,), (1,), (0,)), (0, 1, 2, 3))
    assert problem.crossing(solution) == 10


def test_picture_is_xml_with_a_line_for_each_plan() -> None:
    text = growth.picture({"seconds": {"stages": [(100, 0.1), (1000, 2.0)], "laminar": [(100, 0.0), (1000, 1.0)]}})
    root = ElementTree.fromstring(text)
    assert len(root.findall(".//{http://www.w3.org/2000/svg}polyline")) == 2


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns of 'x'"):
        Table("x", ("a", "b")).add(1)


def test_command_prints_every_section_as_json() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--seconds", "0.05", "--json"]
    data = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert list(data) == ["transformers", "small", "outside", "rivals", "growth"]
    for tables in data.values():
        for table in tables:
            assert table["rows"] or "1b" in table["title"]
            for row in table["rows"]:
                assert row.get("period / bound", 1.0) >= 1.0
