"""Our own orders of training steps: the rows of the zero-bubble paper within its memory, and equal stages.

The first table has the rates of our orders beside those that Qi, Wan, Huang, Lin printed for their search (ICLR 2024,
ZB-1p and ZB-2p), by the span of a rank and within the same memory: p or 2p times what a micro-batch of a rank fills.
The second sums up equal stages with T_F = T_B = T_W against 1F1B, ZB-H1 and ZB-H2, wherever these fit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from passes.scheduling.steps.bounds import Objective, step_bound
from passes.scheduling.steps.cells import Line, Stage
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.run import Run
from passes.scheduling.steps.run import run as simulate
from passes.scheduling.steps.search import schedule_step
from suites.instances import Absent, instance_folder, read_rows
from suites.table import Options, Table, skipped

SEQUENCE = 1024
"""Tokens of a sequence in the rows of the paper."""

OBJECTIVES: tuple[Objective, ...] = ("makespan", "span")

EFFORT = 200_000
"""Of our search on each point of the grid."""


def rates(options: Options) -> Table:
    """Ours beside the paper's search, with the least rate that any orders could have."""
    table = Table(
        "Bubble rates within the memory of ZB-1p and ZB-2p, twelve rows of the zero-bubble paper",
        ("model", "p", "m", "memory", "paper", "ours", "bound", "at or below", "seconds"),
    )
    try:
        rows = read_rows(instance_folder("zero-bubble") / "iclr24_settings_and_bubble_rates.csv")
    except Absent as reason:
        return skipped(table.title, str(reason))
    for row in rows[:2] if options.quick else rows:
        p, m, hidden, heads = (int(row[key]) for key in ("p_stages", "m_microbatches", "hidden", "heads"))
        times = [1000 * int(row[f"T_{kind}_us"]) for kind in "FBW"]
        filled, kept = 34 * hidden + 5 * heads * SEQUENCE, 32 * hidden
        line = Line(tuple(Stage(rank, *times, filled, kept) for rank in range(p)), 1000 * int(row["T_comm_us"]))
        for many in (1, 2):
            limits, printed = [many * p * filled] * p, float(row[f"bubble_ZB_{many}p"])
            begun = time.process_time()
            taken = simulate(line, schedule_step(line, m, limits, objective="span"))
            seconds = time.process_time() - begun
            assert all(peak <= limit for peak, limit in zip(taken.peaks, limits, strict=True))
            ours = round(taken.bubble(taken.span), 4)
            least = round(taken.bubble(step_bound(line, m, limits, "span")), 4)
            table.add(row["model"], p, m, f"{many}p", printed, ours, least, ours <= printed, seconds)
    table.notes.append(f"{sum(bool(row[7]) for row in table.rows)} of {len(table.rows)} at or below, to four digits")
    table.notes.append("rates by the longest span of a rank; bound: no orders have a lower rate")
    return table


@dataclass
class Tally:
    """How our steps of one kind compare."""

    steps: int = 0
    behind: int = 0
    equal: int = 0
    ahead: int = 0
    least: int = 0
    most_ahead: float = 0.0
    widest_gap: float = 0.0
    seconds: float = 0.0

    def add(self, ours: int, known: int, bound: int, seconds: float) -> None:
        self.steps += 1
        self.behind += ours > known
        self.equal += ours == known
        self.ahead += ours < known
        self.least += ours == bound
        self.most_ahead = max(self.most_ahead, 1 - ours / known)
        self.widest_gap = max(self.widest_gap, ours / bound - 1)
        self.seconds = max(self.seconds, seconds)


def cost(taken: Run, objective: Objective) -> int:
    """What an objective counts."""
    return taken.span if objective == "span" else taken.makespan


def memories(ranks: int) -> Iterator[list[int]]:
    """Activations that fit: from what 1F1B holds on its first rank to twice it, the same on all or one fewer a rank."""
    for fit in sorted({ranks, ranks + ranks // 4, ranks + ranks // 2, 2 * ranks - 1, 2 * ranks}):
        yield [fit] * ranks
        yield [fit - rank for rank in range(ranks)]


def fitting(line: Line, microbatches: int, limits: Sequence[int]) -> list[Run]:
    """Known schedules within the limits."""
    known = [simulate(line, KNOWN[name].generate(line, microbatches)) for name in ("1F1B", "ZB-H1", "ZB-H2")]
    return [run for run in known if all(peak <= limit for peak, limit in zip(run.peaks, limits, strict=True))]


def equal_stages(options: Options) -> Table:
    """p in 2..16, m in p, 2p, 4p, delays of none, a tenth and a whole T_F, and a ``W`` that keeps half or nothing."""
    table = Table(
        "Equal stages, T_F = T_B = T_W: ours against the best of 1F1B, ZB-H1, ZB-H2 within the same memory",
        ("p", "delay", "objective", "steps", "behind", "equal", "ahead", "proven least", "most ahead", "gap", "max s"),
    )
    for p, delay, objective in product((2, 4) if options.quick else range(2, 17), (0, 10, 100), OBJECTIVES):
        tally = Tally()
        for m, kept, fit in product((p, 2 * p, 4 * p), (1, 0), memories(p)):
            line = Line(tuple(Stage(rank, 100, 100, 100, 2, kept) for rank in range(p)), delay)
            limits = [2 * many for many in fit]
            begun = time.process_time()
            ours = simulate(line, schedule_step(line, m, limits, objective=objective, effort=EFFORT))
            seconds = time.process_time() - begun
            assert all(peak <= limit for peak, limit in zip(ours.peaks, limits, strict=True))
            known = min(cost(taken, objective) for taken in fitting(line, m, limits))
            tally.add(cost(ours, objective), known, step_bound(line, m, limits, objective), seconds)
        counts = (tally.steps, tally.behind, tally.equal, tally.ahead, tally.least)
        table.add(p, delay / 100, objective, *counts, tally.most_ahead, tally.widest_gap, tally.seconds)
    steps, behind, _, ahead, least = (sum(int(row[k] or 0) for row in table.rows) for k in range(3, 8))
    table.notes.append(f"{behind} of {steps} steps behind, {ahead} ahead, {least} proven least")
    table.notes.append("delay in T_F; most ahead: part of the known step that ours saves; gap: most above the bound")
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    return [rates(options), equal_stages(options)]
