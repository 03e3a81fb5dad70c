"""Schedules run by processes that sleep: measured periods beside predicted ones, and their ratios."""

from __future__ import annotations

from itertools import combinations
from statistics import median

from suites.pipelines import CASES, Case, Figures, run_case
from suites.table import Options, Table

TOLERANCE = 0.10
"""How far a measured period, or a ratio of two, may be from the prediction."""


def run(options: Options) -> list[Table]:
    """Every case once as fast as micro-batches can enter, and once with a period between them."""
    cases = CASES[:3] if options.quick else CASES
    microbatches = 12 if options.quick else 32
    table = Table(
        "emulated runs: a process an accelerator, operators sleep as long as they take",
        (
            *("schedule", "processes", "plan", "period, ms", "measured", "ratio"),
            *("paced", "paced ratio", "latency, ms", "paced latency"),
        ),
    )
    found: list[tuple[Case, Figures]] = []
    for case in cases:
        free = run_case(case, "--microbatches", str(microbatches))
        paced = run_case(case, "--microbatches", str(microbatches), "--pace")
        found.append((case, free))
        table.add(
            *(case.name, case.accelerators, case.plan, free.predicted / 1e6),
            *(free.measured / 1e6, free.measured / free.predicted, paced.measured / 1e6),
            *(paced.measured / paced.predicted, paced.predicted_latency / 1e6, paced.latency / 1e6),
        )
    off = [abs(figures.measured / figures.predicted - 1) for _, figures in found]
    table.notes.append(
        f"period: {median(off):.1%} from the prediction in the median, {max(off):.1%} at most"
        f" ({'within' if median(off) <= TOLERANCE else 'NOT within'} {TOLERANCE:.0%})"
    )
    table.notes.append("ratio: measured / predicted; paced: micro-batches enter at least a period apart")
    return [table, ratios(found)]


def ratios(found: list[tuple[Case, Figures]]) -> Table:
    """How well the ratio of the periods of two schedules is predicted, for the pairs that are furthest off."""
    pairs: list[tuple[float, str, str, float, float]] = []
    for (case, a), (other, b) in combinations(found, 2):
        predicted, measured = a.predicted / b.predicted, a.measured / b.measured
        pairs.append((abs(measured / predicted - 1), case.name, other.name, predicted, measured))
    pairs.sort(reverse=True)
    table = Table("ratios of two periods, the worst", ("schedule", "over", "predicted", "measured", "off by"))
    for off, case, other, predicted, measured in pairs[:5]:
        table.add(case, other, predicted, measured, off)
    within = sum(pair[0] <= TOLERANCE for pair in pairs)
    table.notes.append(f"{within} of {len(pairs)} ratios of two schedules are predicted within {TOLERANCE:.0%}")
    return table
