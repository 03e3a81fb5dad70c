"""How the period of GPT-3 on 64 accelerators grows as links get slower, with and without planning for it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from compiler import compile_model
from frontend import Source
from passes.instance import read_instance
from passes.scheduling.bounds import best_bound
from passes.scheduling.objective import Figures, figures_of
from passes.scheduling.portfolio import Request, solve
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.transfers import with_transfers
from suites.instances import ROOT
from suites.plans import granted
from suites.table import Options, Table

SPEEDS = (600, 300, 100, 50, 25, 10, 5, 2, 1)
"""Bandwidths in GB/s of one accelerator in one direction."""

MODEL = ROOT / "examples" / "gpt3_175b.takt"

PLATFORM = """
import "takt/accelerators.takt"

platform swept {{
  accelerators = 64 of a100_80g
  link node = 8 {{ latency = 35 us  bandwidth = {inside} GB/s }}
  link cluster {{ latency = 120 us  bandwidth = {across} GB/s }}
}}
"""
"""Latencies are those of ``examples/dgx_a100_64.takt``."""

INSIDE = 155
"""GB/s inside a node where only the links between nodes are slowed down, as in that example."""


def problem_of(model: Path, inside: float, across: float) -> MemoryProblem:
    """The model on 64 accelerators in nodes of 8 with these bandwidths in GB/s; collectives are priced by them too."""
    platform = Source("swept.takt", PLATFORM.format(inside=inside, across=across))
    return read_instance(compile_model(model, platform=platform, to="moldable"), "moldable").problem


def aware(problem: MemoryProblem, request: Request, work: float) -> tuple[Figures, str]:
    """The best schedule by plans that know the links."""
    best = solve(problem, request, granted(work))
    best.staged.verify(best.solution)
    return best.figures, best.plan


def unaware(problem: MemoryProblem, request: Request, work: float) -> tuple[Figures, str]:
    """The best schedule of plans that know no links, to which the transfers are added afterwards."""
    best = solve(replace(problem, network=None), request, granted(work))
    staged = replace(best.staged, network=problem.network)
    solution = with_transfers(staged, best.solution, granted(work))
    replace(staged, memory=0).verify(solution)  # what waits for transfers was not planned for in memory
    return figures_of(problem, solution), best.plan


def sweep(title: str, options: Options, inside: float | None) -> Table:
    """One row a bandwidth of the links between nodes, or of all links where ``inside`` is None."""
    columns = (
        *("GB/s", "bound ms", "bound by", "period ms", "plan", "over bound", "in flight"),
        *("unaware ms", "its plan", "its in flight", "unaware / aware", "s"),
    )
    table = Table(title, columns)
    request = Request("auto")
    for speed in (600, 10, 1) if options.quick else SPEEDS:
        begun = time.process_time()
        problem = problem_of(MODEL, speed if inside is None else inside, speed)
        bound = best_bound(problem, granted(options.seconds / 4))
        knowing, plan = aware(problem, request, options.seconds)
        blind, other = unaware(problem, request, options.seconds)
        table.add(
            speed,
            bound.value / 1e6,
            bound.name,
            knowing.period / 1e6,
            plan,
            knowing.period / bound.value - 1,
            knowing.in_flight,
            blind.period / 1e6,
            other,
            blind.in_flight,
            blind.period / knowing.period,
            time.process_time() - begun,
        )
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    return [
        sweep("c1 GPT-3 on 64 accelerators, all links slowed down", options, None),
        sweep(
            f"c2 GPT-3 on 64 accelerators, {INSIDE} GB/s inside nodes, links between nodes slowed down", options, INSIDE
        ),
    ]
