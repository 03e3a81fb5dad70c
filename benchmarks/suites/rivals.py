"""Section 4: our plans against what people use, on the same graph and tables, and where the difference comes from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from passes.scheduling.blocks import pack_blocks
from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.data import InvalidProblem, Operation, Solution
from passes.scheduling.data import Table as CostTable
from passes.scheduling.grains import Granularity
from passes.scheduling.granted import schedule_blocks
from passes.scheduling.problem import MemoryProblem
from passes.scheduling.stages import StagePlan, partition_stages
from suites.baselines import BASELINES, widths_of
from suites.instances import Absent, generator
from suites.plans import LEAST_PERIOD, PLANS, Outcome, Plan, measure, plan, with_bound
from suites.table import Options, Table, skipped
from suites.transformers import transformer

SIZES = ((12, 16), (24, 32), (96, 64))

MEGATRON = {(4, 4): 1.327, (12, 16): 1.430, (24, 32): 1.321, (96, 64): 1.146}
UNIFORM = {(4, 4): 1.046, (12, 16): 1.137, (24, 32): 1.089, (96, 64): 1.060}
"""(Layers, accelerators) → period over bound in the study, equal layers and equal widths."""

EACH_STAGE = "stages (Alpa, Piper, Subhlok and Vondran)"
"""Contiguous stages with a width for each: what others plan best, and our tamest plan."""


def one_width(problem: MemoryProblem, budget: Budget, granularity: Granularity) -> Solution | None:
    """The plan of stages kept from giving stages different widths."""
    best: StagePlan | None = None
    for width in widths_of(problem):
        try:
            found = partition_stages(_only(problem, width), tolerance=0.0, granularity=granularity, budget=budget)
        except InvalidProblem:
            continue
        best = found if best is None or found.period < best.period else best
    if best is None:
        return None
    blocks = pack_blocks(best.widths, problem.accelerators, problem.group)
    assert blocks is not None
    return schedule_blocks(problem.staged(best.granted(blocks), best.homes()))[0]


def _only(problem: MemoryProblem, width: int) -> MemoryProblem:
    """``problem`` with no other allotment than ``width``, as long as the fastest that fits in it."""
    tables: dict[int, CostTable] = {}
    operations: list[Operation] = []
    for o in problem.operations:
        if id(o.table) not in tables:
            fits = [c for k, c in o.table.items() if k <= width]
            tables[id(o.table)] = {width: min(fits, key=lambda c: c.time)} if fits else o.table
        operations.append(replace(o, table=tables[id(o.table)]))
    return replace(problem, operations=tuple(operations))


def against(options: Options) -> Table:
    """Every rival and every plan of ours."""
    table = Table(
        "4a Against what people use (transformers of the study, forward)",
        (
            "layers",
            "accelerators",
            "plan",
            "period / bound",
            "reference",
            "period ms",
            "latency ms",
            "in flight",
            "peak GiB",
            "period less than the best rival's",
            "seconds",
        ),
    )
    references = dict(zip(BASELINES, (MEGATRON, UNIFORM, {}, {}), strict=True))
    rivals = BASELINES | {EACH_STAGE: plan("stages")}
    for key in [(4, 4)] if options.quick else SIZES:
        problem = transformer(*key)
        bound = best_bound(problem, Budget()).value
        least: int | None = None
        for name, solve in (rivals | {p: with_bound(p, bound) for p in PLANS if p != "stages"}).items():
            found = measure(name, solve, problem, options.seconds)
            if found is None:
                table.add(*key, name, *[None] * 8)
                continue
            gain = None
            if name in rivals:
                least = found.period if least is None else min(least, found.period)
            elif least is not None:
                gain = 1 - found.period / least
            table.add(
                *key,
                f"auto ({found.plan})" if name == "auto" else name,
                found.period / bound,
                references.get(name, {}).get(key),
                found.period / 1e6,
                found.latency / 1e6,
                found.in_flight,
                found.peak / 2**30,
                gain,
                found.seconds,
            )
    table.notes.append(f"A dash: nothing found in {options.seconds:g} s.")
    return table


WHOLE_LAYERS = "whole layers, one width"

FREEDOMS: tuple[tuple[str, str | None, tuple[Plan, ...]], ...] = (
    (WHOLE_LAYERS, None, (partial(one_width, granularity="block"),)),
    (
        "whole layers, own widths",
        WHOLE_LAYERS,
        (plan("stages", replace(LEAST_PERIOD, granularity="block")),),
    ),
    ("cut at operators, one width", WHOLE_LAYERS, (partial(one_width, granularity="operator"),)),
    ("cut at operators, own widths", "cut at operators, one width", (plan("stages"),)),
    ("and shared boundaries", "cut at operators, own widths", (plan("shared"),)),
    ("and operators pulled forward", "and shared boundaries", (plan("pushed"),)),
    ("or two chunks a block", "cut at operators, own widths", (plan("interleaved"), plan("v"))),
    ("or single operators on nested blocks", "cut at operators, own widths", (plan("laminar"),)),
)
"""A freedom, the row that it is compared with, and the plans whose best has it."""


def gains(options: Options) -> Table:
    """Our own planner, one freedom after another."""
    table = Table(
        "4b Where the difference comes from: our planner with its freedoms",
        (
            "layers",
            "accelerators",
            "with",
            "period / bound",
            "compared with",
            "period less",
            "than the first",
            "latency ms",
            "in flight",
        ),
    )
    for key in [(4, 4)] if options.quick else SIZES:
        problem = transformer(*key)
        bound = best_bound(problem, Budget()).value
        known: dict[str, int] = {}
        for name, base, plans in FREEDOMS:
            found = [o for p in plans if (o := measure(name, p, problem, options.seconds)) is not None]
            if not found:
                table.add(*key, name, *[None] * 6)
                continue
            best: Outcome = min(found, key=lambda o: o.period)
            known[name] = best.period
            less = 1 - best.period / known[base] if base in known else None
            first = 1 - best.period / known[WHOLE_LAYERS] if base is not None and WHOLE_LAYERS in known else None
            table.add(*key, name, best.period / bound, base, less, first, best.latency / 1e6, best.in_flight)
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    try:
        generator()
    except Absent as reason:
        return [skipped("4 Against what people use", str(reason))]
    return [against(options), gains(options)]
