"""Section 6: device placement of others' graphs under their cost model, transfers not overlapped with computing."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from passes.scheduling.assigned import assign, scheduled
from passes.scheduling.data import Solution
from suites import instances
from suites.instances import Absent, instance_folder, read_rows
from suites.plans import granted
from suites.table import Options, Table, skipped

COLUMNS = (
    "workload",
    "k",
    "ours",
    "our bound",
    "gap",
    "contiguous optimum",
    "with a CPU",
    "best known",
    "its bound",
    "over",
    "in flight",
    "seconds",
)

NEAR = 0.001
"""How far above the best known value counts as reached; values are printed to 4 or 5 digits."""


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def heaviest_load(path: Path, solution: Solution) -> float:
    """The heaviest load of the suite's own definition, in ms, from the file: times, and costs of values that cross.

    Values count once for the accelerator that they leave, and once for each one that they enter.
    """
    data = json.loads(path.read_text())
    at = {node["id"]: solution.sets[v][0] for v, node in enumerate(data["nodes"])}
    load: defaultdict[int, float] = defaultdict(float)
    for node in data["nodes"]:
        load[at[node["id"]]] += node["fpgaLatency"]
    out = {e["sourceId"]: e["cost"] for e in data["edges"] if at[e["sourceId"]] != at[e["destId"]]}
    for source, cost in out.items():
        load[at[source]] += cost
    for source, target in {(e["sourceId"], at[e["destId"]]) for e in data["edges"]}:
        if source in out and target != at[source]:
            load[target] += out[source]
    return max(load.values())


def run(options: Options) -> list[Table]:
    """Every graph of the suite on as many accelerators as it names, beside the published kinds of splits."""
    table = Table("6 dnn-partitioning, transfers not overlapped, memory limited (ms)", COLUMNS)
    try:
        folder = instance_folder("dnn-partitioning")
    except Absent as reason:
        return [skipped(table.title, str(reason))]
    sweep = {(r["instance"], int(r["k_accelerators"])): r for r in read_rows(folder / "reference_values_k_sweep.csv")}
    paper = {
        r["instance"]: float(r["max_load_ms"])
        for r in read_rows(folder / "reference_values_paper_config.csv")
        if r["method"] == "authors_dp"
    }
    near = late = above = proven = 0
    names = [f"{path.parent.name}/{path.stem}" for path in sorted(folder.glob("*/*.json"))]
    for name in names[:2] if options.quick else names:
        path = folder / f"{name}.json"
        problem = instances.read_linked_partitioning(path)
        problem.check()
        begun = time.process_time()
        budget = replace(granted(1.8 * options.seconds), seed=options.seed)
        found = assign(problem, budget=budget)
        solution, bound = scheduled(problem, found, granted(options.seconds / 10)), found.bound
        spent = time.process_time() - begun
        problem.verify(solution)
        ours = solution.period / 1e6
        assert abs(heaviest_load(path, solution) - ours) < 1e-3, "the period is the load of the suite's definition"
        row = sweep.get((name, problem.accelerators), {})
        known = _number(row.get("noncontig_with_comm_best_known"))
        contiguous = _number(row.get("contiguous_opt_with_comm(authors_DP)"))
        over = None if known is None else ours / known - 1
        near += over is not None and over <= NEAR
        above += contiguous is not None and ours > contiguous + 5e-4
        late += spent > 20
        proven += bound >= solution.period
        table.add(
            name,
            problem.accelerators,
            ours,
            bound / 1e6,
            solution.period / bound - 1,
            contiguous,
            paper.get(name),
            known,
            _number(row.get("noncontig_with_comm_lower_bound")),
            over,
            problem.in_flight(solution),
            spent,
        )
    table.notes.append(f"within {NEAR:.1%} of the best known, or below: {near} of {len(table.rows)}; proven: {proven}")
    table.notes.append(f"above the contiguous optimum: {above}; more than 20 s of one core: {late}")
    table.notes.append("with a CPU: the authors' contiguous optimum, which uses a CPU beside the accelerators")
    return [table]
