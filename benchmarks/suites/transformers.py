"""Section 1: transformers of the study, and models of the examples compiled through the front end."""

from __future__ import annotations

from dataclasses import replace

from compiler import compile_model
from passes.instance import read_instance
from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from passes.scheduling.objective import Limits, Objective
from passes.scheduling.portfolio import Request, collect, front
from passes.scheduling.problem import MemoryProblem
from suites.instances import ROOT, Absent, from_generator, generator
from suites.plans import LEAST_PERIOD, PLANS, Plan, bound_with_copies, granted, measure, plan, with_bound
from suites.table import Options, Table, skipped

HIDDEN = {4: 4096, 12: 4096, 24: 8192, 48: 8192, 96: 12288}
"""Width of the models by their number of layers: with these, contiguous stages come out as in the study."""

PERIODS: dict[tuple[int, int], dict[str, float]] = {
    (4, 4): {"stages": 1.046, "shared": 1.037, "laminar": 1.0007},
    (4, 8): {"stages": 1.112, "shared": 1.079, "laminar": 1.0034},
    (12, 8): {"stages": 1.043, "shared": 1.031, "laminar": 1.0015},
    (12, 16): {"stages": 1.118, "shared": 1.061, "laminar": 1.0036},
    (24, 16): {"stages": 1.068, "shared": 1.018, "laminar": 1.0006},
    (24, 32): {"stages": 1.089, "shared": 1.028, "pushed": 1.015, "laminar": 1.0009},
    (24, 64): {"stages": 1.102, "shared": 1.087, "laminar": 1.049},
    (48, 32): {"stages": 1.079, "shared": 1.023, "laminar": 1.0012},
    (48, 64): {"stages": 1.101, "shared": 1.036, "laminar": 1.005},
    (96, 16): {"stages": 1.010, "shared": 1.003, "laminar": 1.0002},
    (96, 32): {"stages": 1.023, "shared": 1.010, "laminar": 1.0003},
    (96, 64): {"stages": 1.060, "shared": 1.033, "pushed": 1.021, "laminar": 1.0007},
    (96, 128): {},
}
"""(Layers, accelerators) → period over bound of the study (its table 3.1), by plan.

Pushed plans: 2.1 % at 96/64 was measured, 1.5 % at 24/32 is the goal of the work.
"""

CAPPED: dict[tuple[int, int], tuple[int, float]] = {(24, 32): (40, 1.028), (96, 64): (90, 1.021)}
"""(Layers, accelerators) → micro-batches in flight allowed, and period over bound of the study; the goal is 1.015."""

FLYING: dict[tuple[int, int], dict[str, int]] = {
    (24, 32): {"stages": 27, "shared": 40, "pushed": 40, "laminar": 194},
    (96, 64): {"stages": 30, "shared": 86, "pushed": 90, "laminar": 731},
}
"""(Layers, accelerators) → micro-batches in flight of the study (its table 3.2), by plan."""

PEAKS: dict[tuple[int, int], dict[str, float]] = {
    (24, 32): {"stages": 1.5, "shared": 2.2, "laminar": 2.7},
    (96, 64): {"stages": 5.8, "shared": 6.6, "laminar": 7.9},
}
"""(Layers, accelerators) → GB on the fullest accelerator (its table 3.2), by plan."""

EXAMPLES = ("gpt3_175b", "llama3_70b", "mixtral_8x7b", "encoder_decoder")

COLUMNS = (
    "model",
    "operations",
    "accelerators",
    "plan",
    "period / bound",
    "reference",
    "in flight",
    "reference in flight",
    "peak GiB",
    "reference GB",
    "crossing GiB",
    "seconds",
)


def study(options: Options) -> Table:
    """Every plan on the study's transformers (forward), beside the study's figures."""
    table = Table("1a Transformers of the study, forward, no memory limit", COLUMNS)
    try:
        generator()
    except Absent as reason:
        return skipped(table.title, str(reason))
    sizes = [(4, 4)] if options.quick else list(PERIODS)
    met = compared = 0
    for key in sizes:
        problem = transformer(*key)
        bound = best_bound(problem, Budget()).value
        plans = {name: with_bound(name, bound) for name in (*PLANS, "replicated")}
        known = {
            name: (PERIODS[key].get(name), FLYING.get(key, {}).get(name), PEAKS.get(key, {}).get(name))
            for name in plans
        }
        if key in CAPPED:
            most, reached = CAPPED[key]
            name = f"auto, at most {most} in flight"
            plans[name] = plan("auto", replace(LEAST_PERIOD, limits=Limits(in_flight=most), bound=bound))
            known[name] = (reached, most, None)
        for name, ratio in _rows(table, f"{key[0]} layers", problem, bound, plans, known, options):
            reference = known[name][0]
            if reference is not None:
                compared += 1
                met += round(ratio, 4 if name == "laminar" else 3) <= reference
    table.notes.append(f"at most the reference in {met} of {compared} periods; auto: (the plan that it took)")
    table.notes.append("replicated: over the bound for operations with copies, which is lower; others have one copy")
    table.notes.append("pushed and limits in flight: 2.1 % (96/64) and 2.8 % (24/32) were known, the goal is 1.5 %")
    return table


def transformer(layers: int, accelerators: int) -> MemoryProblem:
    """A transformer of the study, forward; raises :class:`Absent` without its generator."""
    return from_generator(generator().gpt(layers, accelerators, h=HIDDEN[layers], kmax=16))


def examples(options: Options) -> Table:
    """Every plan on models of ``examples/`` at their default platform of 64 accelerators, memory included."""
    table = Table("1b Models of the examples, through the front end", COLUMNS)
    for name in EXAMPLES[:0] if options.quick else EXAMPLES:
        path, platform = ROOT / "examples" / f"{name}.takt", ROOT / "examples" / "dgx_a100_64.takt"
        problem = read_instance(compile_model(path, platform=platform, to="moldable"), "moldable").problem
        bound = best_bound(problem, Budget()).value
        plans = {p: with_bound(p, bound) for p in PLANS}
        shown = dict(_rows(table, name, problem, bound, plans, {}, options))
        for missing in PLANS:
            if missing not in shown:
                table.add(name, len(problem.operations), problem.accelerators, missing, *[None] * 8)
    table.notes.append("A dash: the plan found no schedule that fits in memory.")
    return table


def _rows(
    table: Table,
    model: str,
    problem: MemoryProblem,
    bound: int,
    plans: dict[str, Plan],
    known: dict[str, tuple[float | None, int | None, float | None]],
    options: Options,
) -> list[tuple[str, float]]:
    """Measure every plan, append its row, and return the ratios of period to bound."""
    ratios: list[tuple[str, float]] = []
    for name, solve in plans.items():
        found = measure(name, solve, problem, options.seconds)
        if found is None:
            continue
        period, flying, peak = known.get(name, (None, None, None))
        ratio = found.period / (bound_with_copies(problem) if name == "replicated" else bound)
        ratios.append((name, ratio))
        table.add(
            model,
            len(problem.operations),
            problem.accelerators,
            name if found.plan == name else f"{name} ({found.plan})",
            ratio,
            period,
            found.in_flight,
            flying,
            found.peak / 2**30,
            peak,
            found.crossing / 2**30,
            found.seconds,
        )
    return ratios


BATCHES = (8, 32, 128, 512, 4096)
"""Micro-batches of a step."""

STEPS: dict[tuple[int, int], tuple[float, ...]] = {
    (24, 32): (1.943, 1.451, 1.207, 1.124, 1.099),
    (96, 64): (2.337, 1.520, 1.237, 1.121, 1.081),
}
"""(Layers, accelerators) → time of a step over micro-batches times bound of the study (its table 3.4), by batch."""


def finite(options: Options) -> Table:
    """The time of a step of few micro-batches, when that is what is asked for."""
    table = Table(
        "1c Steps of m micro-batches: ((m - 1)·period + latency) / (m·bound)",
        ("layers", "accelerators", "plan", *(f"m = {m}" for m in BATCHES), "in flight, m = 8", "slowest s"),
    )
    sizes = [(4, 4)] if options.quick else list(STEPS)
    for key in sizes:
        try:
            problem = transformer(*key)
        except Absent as reason:
            return skipped(table.title, str(reason))
        bound = best_bound(problem, Budget()).value
        for name in ("stages", "list", "auto"):
            cells: list[float | None] = []
            flying, slowest = None, 0.0
            for m in BATCHES:
                wanted = Request(objective=Objective("step", m, tolerance=0.0), bound=bound)
                found = measure(name, plan(name, wanted), problem, options.seconds)
                cells.append(None if found is None else found.step(m) / (m * bound))
                if found is not None:
                    slowest = max(slowest, found.seconds)
                    flying = found.in_flight if m == BATCHES[0] else flying
            table.add(*key, name, *cells, flying, slowest)
        if key in STEPS:
            table.add(*key, "reference, training", *STEPS[key], None, None)
    table.notes.append("Ours forward, the study's contiguous plans in training: similar, not the same instance.")
    return table


def trade_off(options: Options) -> Table:
    """The schedules of the portfolio that no other beats in both period and micro-batches in flight."""
    layers, accelerators = (4, 4) if options.quick else (96, 64)
    table = Table(
        f"1d Front of period and micro-batches in flight, {layers} layers on {accelerators}",
        ("plan", "period / bound", "in flight", "latency / period", "peak GiB", "crossing GiB"),
    )
    try:
        problem = transformer(layers, accelerators)
    except Absent as reason:
        return skipped(table.title, str(reason))
    bound = best_bound(problem, Budget()).value
    wanted = replace(LEAST_PERIOD, bound=bound, front=True)
    found = collect(problem, wanted, granted(4 * options.seconds))
    for candidate in front(found, ("period", "in-flight")):
        candidate.staged.verify(candidate.solution)
        f = candidate.figures
        table.add(
            candidate.plan, f.period / bound, f.in_flight, f.latency / f.period, f.memory / 2**30, f.crossing / 2**30
        )
    table.notes.append(f"the front of {len(found)} verified schedules; the study: 1.060 with 30, 1.033 with 86,")
    table.notes.append("1.021 with 90, 1.0007 with 731")
    return table


MEMORY = (2.0, 1.2, 1.1, 1.05, 1.0, 0.95, 0.9)
"""Memory of an accelerator, as a fraction of what the plan of stages needs."""


def tight(options: Options) -> Table:
    """What ``auto`` takes as memory becomes scarce."""
    table = Table(
        "1e Less and less memory on each accelerator: what auto takes",
        (
            "layers",
            "accelerators",
            "memory GiB",
            "of what stages need",
            "plan taken",
            "period / bound",
            "in flight",
            "peak GiB",
            "seconds",
        ),
    )
    for key in [(4, 4)] if options.quick else [(24, 32), (96, 64)]:
        try:
            problem = transformer(*key)
        except Absent as reason:
            return skipped(table.title, str(reason))
        bound = best_bound(problem, Budget()).value
        free = measure("stages", plan("stages"), problem, options.seconds)
        assert free is not None
        for share in MEMORY[:2] if options.quick else MEMORY:
            memory = round(free.peak * share)
            wanted = Request(limits=Limits(memory=memory), bound=bound)
            found = measure("auto", plan("auto", wanted), problem, options.seconds)
            if found is None:
                table.add(*key, memory / 2**30, share, "none fits", *[None] * 4)
                continue
            assert found.peak <= memory
            ratio, peak = found.period / bound, found.peak / 2**30
            table.add(*key, memory / 2**30, share, found.plan, ratio, found.in_flight, peak, found.seconds)
    table.notes.append("The bound is that of the problem without a limit on memory.")
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    return [study(options), examples(options), finite(options), trade_off(options), tight(options)]
