"""Section 2: few operations on many accelerators, and how many small instances are proven optimal."""

from __future__ import annotations

import time
from itertools import product
from math import exp, log

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from suites.instances import Absent, from_generator, generator
from suites.plans import PLANS, Plan, granted, measure, nested, plan, with_bound
from suites.table import Options, Table, skipped

FEW: dict[tuple[int, int], tuple[float, float]] = {
    (10, 16): (1.064, 3.5),
    (20, 32): (1.043, 1.2),
    (20, 64): (1.063, 3.6),
    (50, 32): (1.039, 0.8),
    (50, 64): (1.087, 4.5),
    (100, 64): (1.067, 1.0),
}
"""(Operations, accelerators) → best period over bound of the study's table of few operations (3.5, sigma 0.5)."""

MIXED: dict[tuple[int, int, float], tuple[float, float, float]] = {
    (20, 16, 1.0): (1.13, 1.12, 1.12),
    (50, 16, 1.5): (1.12, 1.10, 1.007),
    (100, 32, 1.5): (1.13, 1.09, 1.011),
    (300, 64, 1.5): (1.08, 1.06, 1.002),
}
"""(Operations, accelerators, sigma) → stages, shared, laminar with local search (3.7, eight seeds)."""

PROOF_SECONDS = 10.0

UNITS = (2.0, 10.0)
"""Units of work of the plan ``laminar`` on few operations."""


def geometric(values: list[float]) -> float:
    """The geometric mean."""
    return exp(sum(map(log, values)) / len(values))


def few(options: Options) -> Table:
    """Geometric means over two seeds of the ratio to the bound that the study used, and to our best one."""
    table = Table(
        "2a Random graphs, few operations on many accelerators (sigma 0.5, two seeds): period over bound",
        (
            "operations",
            "accelerators",
            "stages",
            *(f"ours, {units:g} units" for units in UNITS),
            "reference best",
            "ours over our best bound",
            "seconds",
            "bound s",
        ),
    )
    try:
        make = generator().random_dag
    except Absent as reason:
        return skipped(table.title, str(reason))
    met = 0
    sizes = list(FEW)[:1] if options.quick else list(FEW)
    for n, accelerators in sizes:
        ratios: dict[str, list[float]] = {name: [] for name in ("stages", *map(str, UNITS), "strong")}
        seconds = bounding = 0.0
        for s in range(2):
            graph = make(n, accelerators, seed=17 * s + n + accelerators, pow2=True, sigma=0.5, serial=(0, 0.1))
            problem = from_generator(graph)
            bound = best_bound(problem, Budget()).value
            begun = time.process_time()
            strong = best_bound(problem, granted(options.seconds)).value
            bounding += time.process_time() - begun
            tame = measure("stages", plan("stages"), problem, options.seconds)
            assert tame is not None
            ratios["stages"].append(tame.period / bound)
            best = tame.period
            for units in UNITS:
                work = units * options.seconds / UNITS[-1] if options.quick else units
                found = measure("laminar", with_bound("laminar", strong), problem, work)
                assert found is not None
                best = min(best, found.period)
                ratios[str(units)].append(best / bound)
                seconds += found.seconds
            ratios["strong"].append(best / strong)
        stages, *ours, over = map(geometric, ratios.values())
        table.add(n, accelerators, stages, *ours, FEW[n, accelerators][0], over, seconds / 2, bounding / 2)
        met += round(ours[-1], 3) <= FEW[n, accelerators][0]
    table.notes.append(f"ours at most the reference in {met} of {len(sizes)} rows (the study took about 20 s each)")
    table.notes.append("Ratios are to the linear program of dual feasible functions, as in the study, but for the")
    table.notes.append("last; seconds are means over seeds, of both runs together and of the best bound.")
    return table


def mixed(options: Options) -> Table:
    """Geometric means over seeds on larger random graphs."""
    table = Table(
        "2b Random graphs (geometric means over seeds)",
        ("operations", "accelerators", "sigma", *PLANS, "reference stages", "reference shared", "reference laminar"),
    )
    try:
        make = generator().random_dag
    except Absent as reason:
        return skipped(table.title, str(reason))
    met = 0
    sizes = list(MIXED.items())[: 1 if options.quick else None]
    for (n, accelerators, sigma), known in sizes:
        ratios: dict[str, list[float]] = {name: [] for name in PLANS}
        for seed in range(2 if options.quick else 4):
            problem = from_generator(make(n, accelerators, seed=seed, pow2=True, sigma=sigma))
            bound = best_bound(problem, Budget()).value
            for name in PLANS:
                found = measure(name, with_bound(name, bound), problem, options.seconds)
                if found is not None:
                    ratios[name].append(found.period / bound)
        table.add(n, accelerators, sigma, *(geometric(r) if r else None for r in ratios.values()), *known)
        met += round(geometric(ratios["laminar"]), 3) <= known[-1]
    table.notes.append(f"laminar at most the reference in {met} of {len(sizes)} rows")
    table.notes.append("The study does not give the seeds of this table: the instances are of the same family.")
    return table


FAMILIES: tuple[tuple[str, int, range], ...] = (("free sets", 4, range(4, 9)), ("nested blocks", 8, range(8, 13)))
"""What is proven least of, accelerators, numbers of operations."""


def proofs(options: Options) -> Table:
    """How many of the small instances are solved and proven optimal in time."""
    table = Table(
        "2c Small instances: proven least within 10 s",
        ("least of", "operations", "accelerators", "instances", "proven", "share", "of any sets", "mean s", "max s"),
    )
    try:
        make = generator().random_dag
    except Absent as reason:
        return skipped(table.title, str(reason))
    each = 1 if options.quick else 20
    limit = min(options.seconds, PROOF_SECONDS)
    for family, accelerators, sizes in FAMILIES:
        proven = optimal = 0
        times: list[float] = []
        for n, seed in product(sizes[: 1 if options.quick else None], range(each)):
            problem = from_generator(make(n, accelerators, seed=1000 * n + seed, pow2=True, serial=(0, 0.1)))
            begun = time.process_time()
            bound = best_bound(problem, granted(limit / 2)).value
            engine: Plan = nested(bound) if family == "nested blocks" else with_bound("free", bound)
            found = measure(family, engine, problem, limit)
            times.append(time.process_time() - begun)
            assert found is not None
            in_time = times[-1] <= PROOF_SECONDS
            proven += in_time and (found.least or found.period == bound)
            optimal += in_time and (found.period == bound or (found.least and family == "free sets"))
        table.add(
            family,
            f"{sizes[0]} to {sizes[-1]}",
            accelerators,
            len(times),
            proven,
            proven / len(times),
            optimal,
            sum(times) / len(times),
            max(times),
        )
    table.notes.append("reference: 0.95; proven: the period equals a bound, or the engine left nothing shorter;")
    table.notes.append("of any sets: no schedule on any sets is shorter; seconds with the bound")
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    return [few(options), mixed(options), proofs(options)]
