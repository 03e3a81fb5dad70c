"""Section 4: our plans against what people use, on the same graph and tables."""

from __future__ import annotations

from passes.scheduling.bounds import best_bound
from passes.scheduling.budget import Budget
from suites.baselines import BASELINES
from suites.instances import Absent, from_generator, generator
from suites.plans import PLANS, measure
from suites.table import Options, Table, skipped
from suites.transformers import HIDDEN

SIZES = ((12, 16), (24, 32), (96, 64))

MEGATRON = {(4, 4): 1.327, (12, 16): 1.430, (24, 32): 1.321, (96, 64): 1.146}
UNIFORM = {(4, 4): 1.046, (12, 16): 1.137, (24, 32): 1.089, (96, 64): 1.060}
"""(Layers, accelerators) → period over bound in the study, equal layers and equal widths."""


def run(options: Options) -> list[Table]:
    """The table of this section."""
    table = Table(
        "4 Against what people use (transformers of the study, forward)",
        (
            "layers",
            "accelerators",
            "plan",
            "period / bound",
            "reference",
            "latency / period",
            "in flight",
            "peak GiB",
            "period less, of the best rival",
            "seconds",
        ),
    )
    try:
        make = generator().gpt
    except Absent as reason:
        return [skipped(table.title, str(reason))]
    references = dict(zip(BASELINES, (MEGATRON, UNIFORM, {}, {}), strict=True))
    for layers, accelerators in [(4, 4)] if options.quick else SIZES:
        problem = from_generator(make(layers, accelerators, h=HIDDEN[layers], kmax=16))
        bound = best_bound(problem, Budget(options.seconds)).value
        rival: int | None = None
        for name, plan in (BASELINES | PLANS).items():
            found = measure(name, plan, problem, options.seconds)
            if found is None:
                table.add(layers, accelerators, name, *[None] * 7)
                continue
            gain = None
            if name in BASELINES:
                rival = found.period if rival is None else min(rival, found.period)
            elif rival is not None:
                gain = 1 - found.period / rival
            table.add(
                layers,
                accelerators,
                name,
                found.period / bound,
                references.get(name, {}).get((layers, accelerators)),
                found.latency / found.period,
                found.in_flight,
                found.peak / 2**30,
                gain,
                found.seconds,
            )
    table.notes.append(f"A dash: nothing found in {options.seconds:g} s.")
    table.notes.append("stages: what Alpa, Piper, Subhlok and Vondran plan (a width for each stage).")
    return [table]
