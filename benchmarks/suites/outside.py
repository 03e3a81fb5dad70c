"""Section 3: instances that others made, beside published values and those of the authors' own programs."""

from __future__ import annotations

import time
from collections import defaultdict

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.packing import schedule_rigid
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.recurrence import recurrence_bound
from suites import instances
from suites.instances import Absent, instance_folder, read_rows
from suites.plans import Outcome, granted, measure, nested, plan, with_bound
from suites.table import Options, Table, skipped

SWEEP = (2, 4, 6, 8, 16)

BOUND_WORK = 20.0
"""Units of work for a bound of Piper's BERT-32."""

BEST_OF = ("laminar", "pushed", "v")
"""The plans beside stages whose best schedule of Piper's BERT-32 is shown."""

BERT = {8: 0.122262, 16: 0.061686, 32: 0.031401, 64: 0.019782, 128: 0.012996}
"""Accelerators → best known period of Piper's BERT-32 in s, zero communication, no replication."""

CONTIGUOUS = {8: 0.123013, 16: 0.062082, 32: 0.031608, 64: 0.021974, 128: 0.015714}
"""Accelerators → period of Piper's own plan, same conditions."""


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def partitioning(options: Options) -> Table:
    """Real graphs on one accelerator an operation, co-location classes as one, no communication, no memory."""
    table = Table(
        "3a dnn-partitioning, zero communication (ms)",
        (
            "workload",
            "k",
            "ours",
            "our bound",
            "proven",
            "contiguous optimum",
            "best known",
            "its bound",
            "over",
            "seconds",
        ),
    )
    try:
        folder = instance_folder("dnn-partitioning")
    except Absent as reason:
        return skipped(table.title, str(reason))
    near = late = above = 0
    rows = [r for r in read_rows(folder / "reference_values_k_sweep.csv") if int(r["k_accelerators"]) in SWEEP]
    for row in rows[:3] if options.quick else rows:
        k = int(row["k_accelerators"])
        given = instances.read_partitioning(folder / f"{row['instance']}.json", k)
        begun = time.perf_counter()
        solution, found = schedule_rigid(given, budget=Budget(options.seconds), seed=options.seed)
        spent = time.perf_counter() - begun
        given.verify(solution)
        ours, known = found.load / 1e6, _number(row["noncontig_zero_comm_best_known"])
        contiguous = _number(row["contiguous_opt_zero_comm(authors_DP)"])
        assert known is not None
        over = ours / known - 1
        near += over <= 0.001
        late += spent > 10
        above += contiguous is not None and ours > contiguous + 5e-4  # they are printed to 4 or 5 digits
        low = _number(row["noncontig_zero_comm_lower_bound"])
        table.add(row["instance"], k, ours, found.bound / 1e6, found.proven, contiguous, known, low, over, spent)
    share = near / len(table.rows)
    table.notes.append(
        f"within 0.1 % of the best known: {share:.1%} of rows (reference 95 %); above contiguous: {above}"
    )
    table.notes.append(f"slower than 10 s: {late}; proven here: {sum(bool(r[4]) for r in table.rows)}")
    return table


def piper(options: Options) -> Table:
    """Measured moldable times of BERT-32: our best schedule of any plan, and what is proven of it."""
    table = Table(
        "3b Piper's BERT-32, zero communication, no replication (s)",
        (
            "accelerators",
            "stages",
            "ours",
            "plan",
            "our bound",
            "bound by",
            "over bound",
            "proven",
            "best known",
            "Piper",
            "seconds",
            "bound s",
        ),
    )
    try:
        path = instance_folder("piper") / "bert32a100.json"
    except Absent as reason:
        return skipped(table.title, str(reason))
    met: list[int] = []
    for accelerators in [8] if options.quick else list(BERT):
        problem = instances.read_piper(path, accelerators)
        begun = time.process_time()
        work = BOUND_WORK if options.seconds >= 1 else options.seconds
        bound = best_bound(problem, granted(work))
        bounding = time.process_time() - begun
        stages = measure("stages", plan("stages"), problem, options.seconds)
        best = stages
        spent = 0.0
        for name in BEST_OF:
            if best is not None and best.period == bound.value:
                break
            engine = nested(bound.value) if name == "laminar" else with_bound(name, bound.value)
            found = measure(name, engine, problem, options.seconds)
            if found is not None:
                spent += found.seconds
                best = found if best is None or found.period < best.period else best
        assert stages is not None
        assert best is not None
        known = BERT[accelerators]
        if round(best.period / 1e9, 6) <= known:
            met.append(accelerators)
        table.add(
            accelerators,
            seconds_text(stages.period),
            seconds_text(best.period),
            best.plan,
            seconds_text(bound.value),
            bound.name,
            best.period / bound.value - 1,
            best.period == bound.value,
            f"{known:.6f}",
            f"{CONTIGUOUS[accelerators]:.6f}",
            spent,
            bounding,
        )
    table.notes.append(f"best known value reached on {met} accelerators; bounds with {BOUND_WORK:g} units of work")
    table.notes.append("stages: contiguous, a width for each, as Piper plans; ours: the best of " + ", ".join(BEST_OF))
    return table


def seconds_text(ns: int) -> str:
    """A time with all its digits, in s: differences matter in the last ones."""
    return f"{ns / 1e9:.9f}".rstrip("0")


def loops(options: Options) -> Table:
    """Recurrence bound of loops of high-level synthesis."""
    table = Table(
        "3c Loops of high-level synthesis: recurrence bound (cycles)",
        ("suite", "loops", "equal", "different", "slowest s"),
    )
    try:
        folder = instance_folder("hatschet")
    except Absent as reason:
        return skipped(table.title, str(reason))
    equal: defaultdict[str, int] = defaultdict(int)
    total: defaultdict[str, int] = defaultdict(int)
    slowest: defaultdict[str, float] = defaultdict(float)
    different: list[str] = []
    for row in read_rows(folder / "reference_II.csv")[: 5 if options.quick else None]:
        graph, resources = folder / row["graph"], folder / row["resource_model"]
        if not graph.is_file() or not resources.is_file():
            continue
        problem = instances.read_loop(graph, resources)
        begun = time.process_time()
        bound = recurrence_bound(problem)
        suite = row["suite"]
        slowest[suite] = max(slowest[suite], time.process_time() - begun)
        value = bound.value if bound is not None else 1
        total[suite] += 1
        same = value == int(row["RecMII"])
        equal[suite] += same
        if not same:
            different.append(f"{row['graph']}: {value}, reference {row['RecMII']}")
    for suite in total:
        table.add(suite, total[suite], equal[suite], total[suite] - equal[suite], slowest[suite])
    table.notes += different
    return table


def moldable(options: Options) -> Table:
    """Random moldable graphs and independent tasks, for which nobody gives comparable optima."""
    table = Table(
        "3d Random moldable graphs and independent tasks",
        ("set", "instances", "mean gap", "worst gap", "proven", "share proven", "mean s", "slowest s"),
    )
    sets: dict[str, list[MemoryProblem]] = {}
    try:
        bench = instance_folder("malleable-dag") / "bench"
        jobs = sorted(bench.glob("jobs_*.csv"))[:: 20 if options.quick else 1]
        sets["graphs, 10 to 50 operations"] = [
            instances.read_malleable(path, path.with_name(f"constraints_for_{path.name}")) for path in jobs
        ]
        files = sorted(instance_folder("moldable-independent").glob("*.in.bz2"))[:: 5 if options.quick else 1]
        sets["independent, 10 operations"] = [instances.read_independent(path) for path in files]
    except Absent as reason:
        return skipped(table.title, str(reason))
    for name, problems in sets.items():
        gaps: list[float] = []
        times: list[float] = []
        proven = 0
        for problem in problems:
            begun = time.process_time()
            bound = best_bound(problem, granted(min(2.0, options.seconds))).value
            best: Outcome | None = None
            optimal = False
            for engine in (nested(bound), with_bound("free", bound)):
                found = measure("free", engine, problem, min(3.0, options.seconds))
                assert found is not None
                best = found if best is None or found.period < best.period else best
                optimal = best.period == bound or (found.plan == "free" and found.least)
                if optimal:
                    break
            assert best is not None
            gaps.append(0.0 if optimal else best.period / bound - 1)
            times.append(time.process_time() - begun)
            proven += optimal
        n = len(problems)
        table.add(name, n, sum(gaps) / n, max(gaps), proven, proven / n, sum(times) / n, max(times))
    table.notes.append("gap: 0 where the period is proven least; seconds with the bound (2 units)")
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    return [partitioning(options), piper(options), loops(options), moldable(options)]
