"""Section 2: few operations on many accelerators, and how many small instances are proven optimal."""

from __future__ import annotations

from itertools import product
from math import exp, log

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.problem import MemoryProblem
from suites.instances import Absent, from_generator, generator
from suites.plans import EXACT, OPERATORS, PLANS, Plan, measure
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


def geometric(values: list[float]) -> float:
    """The geometric mean."""
    return exp(sum(map(log, values)) / len(values))


def few(options: Options) -> Table:
    """Geometric means over two seeds of the ratio to our bound, beside the study's best column."""
    plans = PLANS | EXACT
    table = Table(
        "2a Random graphs, few operations on many accelerators (sigma 0.5, two seeds)",
        ("operations", "accelerators", *plans, "best", "reference best", "seconds"),
    )
    try:
        make = generator().random_dag
    except Absent as reason:
        return skipped(table.title, str(reason))
    met = 0
    sizes = list(FEW)[:1] if options.quick else list(FEW)
    for n, accelerators in sizes:
        ratios: dict[str, list[float]] = {plan: [] for plan in plans}
        seconds = 0.0
        best: list[float] = []
        for s in range(2):
            graph = make(n, accelerators, seed=17 * s + n + accelerators, pow2=True, sigma=0.5, serial=(0, 0.1))
            found, spent = _ratios(from_generator(graph), plans, options)
            seconds += spent
            best.append(min(found.values()))
            for plan, ratio in found.items():
                ratios[plan].append(ratio)
        means = [geometric(r) if r else None for r in ratios.values()]
        table.add(n, accelerators, *means, geometric(best), FEW[n, accelerators][0], seconds)
        met += round(geometric(best), 3) <= FEW[n, accelerators][0]
    table.notes.append(f"best at most the reference in {met} of {len(sizes)} rows (the study took about 20 s each)")
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
    for (n, accelerators, sigma), known in list(MIXED.items())[: 1 if options.quick else None]:
        ratios: dict[str, list[float]] = {plan: [] for plan in PLANS}
        for seed in range(2 if options.quick else 4):
            found, _ = _ratios(from_generator(make(n, accelerators, seed=seed, pow2=True, sigma=sigma)), PLANS, options)
            for plan, ratio in found.items():
                ratios[plan].append(ratio)
        table.add(n, accelerators, sigma, *(geometric(r) if r else None for r in ratios.values()), *known)
    table.notes.append("The study does not give the seeds of this table: the instances are of the same family.")
    return table


def _ratios(problem: MemoryProblem, plans: dict[str, Plan], options: Options) -> tuple[dict[str, float], float]:
    """Period over bound of each plan that finds a schedule, and the seconds of all together."""
    bound = best_bound(problem, Budget(options.seconds)).value
    found: dict[str, float] = {}
    seconds = 0.0
    for plan, solve in plans.items():
        outcome = measure(plan, solve, problem, options.seconds)
        if outcome is not None:
            found[plan] = outcome.period / bound
            seconds += outcome.seconds
    return found, seconds


def proofs(options: Options) -> Table:
    """How many of the small instances are solved and proven optimal in time."""
    table = Table(
        "2c Small instances: proven optimal within 10 s",
        ("family", "operations", "accelerators", "instances", "proven", "share", "worst gap", "slowest s"),
    )
    try:
        make = generator().random_dag
    except Absent as reason:
        return skipped(table.title, str(reason))
    engines = OPERATORS | EXACT
    each = 2 if options.quick else 20
    for family, accelerators, sizes in (("free sets", 4, range(4, 9)), ("laminar", 8, range(8, 13))):
        proven = total = 0
        gap = slowest = 0.0
        for n, seed in product(sizes, range(each)):
            problem = from_generator(make(n, accelerators, seed=1000 * n + seed, pow2=True, serial=(0, 0.1)))
            bound = best_bound(problem, Budget(1.0)).value
            best = None
            spent = 0.0
            for name, solve in engines.items():
                outcome = measure(name, solve, problem, min(options.seconds, PROOF_SECONDS))
                if outcome is not None:
                    spent += outcome.seconds
                    best = outcome.period if best is None else min(best, outcome.period)
                    bound = max(bound, outcome.bound)
                if best == bound:
                    break
            assert best is not None
            total += 1
            proven += best == bound and spent <= PROOF_SECONDS
            gap, slowest = max(gap, best / bound - 1), max(slowest, spent)
        table.add(family, f"{sizes[0]} to {sizes[-1]}", accelerators, total, proven, proven / total, gap, slowest)
    table.notes.append(f"engines: {', '.join(engines)}; reference: 0.95; proven by our bounds or by the engine itself")
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    return [few(options), mixed(options), proofs(options)]
