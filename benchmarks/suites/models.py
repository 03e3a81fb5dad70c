"""Real models, whose stages are not equal: our steps beside every known schedule, on the same graph and costs."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from compiler.view import ScheduleView, view_of
from dialects.diagnostics import TaktError
from dialects.memory_rules import peak_memory
from dialects.structure import find_graph, find_platform
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.baselines import OWN, STAGGERED, baselines
from passes.choices import Recomputation
from passes.expand_training import ExpandTrainingPass
from passes.recompute_activations import RecomputeActivationsPass
from passes.scheduling.steps.known import KNOWN
from suites.idle import busiest, imbalance, price_of_width, shape, split
from suites.instances import ROOT
from suites.table import Options, Table

GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """An example model on an example platform, trained with Adam, in steps of so many micro-batches."""

    model: str
    platform: str
    microbatches: int
    recompute: Recomputation = "none"
    layers: int | None = None

    def __str__(self) -> str:
        again = "" if self.recompute == "none" else f", recompute {self.recompute}"
        return f"{self.model} on {self.platform}, m = {self.microbatches}{again}"


CASES = (
    Case("gpt3_175b", "dgx_a100_64", 16),
    Case("llama3_70b", "dgx_h100_64", 16),
    Case("llama3_70b", "dgx_h100_64", 16, "selective"),
    Case("mixtral_8x7b", "dgx_a100_16", 16),
    Case("mixtral_8x7b", "dgx_a100_64", 64),
)
QUICK = (Case("mixtral_8x7b", "dgx_a100_16", 4, layers=4),)


def moldable(case: Case) -> ModuleOp:
    """The training graph of a case, with the costs of its platform."""
    examples = ROOT / "examples"
    platform = Source.read(examples / f"{case.platform}.takt")
    overrides = {} if case.layers is None else {"layers": str(case.layers)}
    module = load(Source.read(examples / f"{case.model}.takt"), platform=platform, overrides=overrides, model=None)
    ExpandTrainingPass(optimizer="adam").apply(Context(), module)
    if case.recompute != "none":
        RecomputeActivationsPass(policy=case.recompute).apply(Context(), module)
    AnnotateCostsPass().apply(Context(), module)
    return module


@dataclass(frozen=True)
class Made:
    """A step that fits, and what it took to find it."""

    name: str
    view: ScheduleView
    memory: int
    seconds: float


def measure(case: Case, effort: float) -> tuple[list[Made], dict[str, int | str]]:
    """The steps of a case by their names; and of those that do not fit, the bytes that they need, or why else."""
    module = moldable(case)
    platform = find_platform(module)
    assert platform is not None
    made: list[Made] = []
    refused: dict[str, int | str] = {}
    begun = time.process_time()
    for name, found in baselines(module, case.microbatches, effort=effort):
        seconds = time.process_time() - begun
        if isinstance(found, TaktError):
            missing = re.search(r"lacks? (\d+) bytes", str(found))
            refused[name] = str(found) if missing is None else platform.memory.value.data + int(missing[1])
        else:
            graph = find_graph(found)
            assert graph is not None
            fullest = max(sum(held) for held in peak_memory(graph, platform).values())
            made.append(Made(name, view_of(found), fullest, seconds))
        begun = time.process_time()
    return made, refused


def tables(case: Case, effort: float) -> list[Table]:
    """All schedules of a case; and of ours and of the best known one where the time goes."""
    steps = Table(
        f"{case}: steps",
        ("schedule", "ranks", "step ms", "ours ahead", "above bound", "bubble", "peak GiB", "seconds"),
    )
    made, refused = measure(case, effort)
    own = {one.name: one for one in made if one.name in (OWN, STAGGERED)}
    known = [one for one in made if one.name not in own]
    for one in made:
        view = one.view
        ours = own[STAGGERED if one.name == STAGGERED or (one.name in KNOWN and KNOWN[one.name].staggered) else OWN]
        steps.add(
            one.name,
            str(shape(view)),
            round(view.pattern / 1e6, 1),
            f"{1 - ours.view.pattern / view.pattern:.1%}",
            f"{view.pattern / view.bound - 1:.1%}",
            f"{float(sum(view.bubble.values()) / len(view.bubble)):.1%}",
            round(one.memory / GIB, 1),
            round(one.seconds, 1),
        )
    for name, why in refused.items():
        steps.notes.append(f"{name}: {why if isinstance(why, str) else f'does not fit, needs {why} bytes'}")
    steps.notes.append("schedules whose steps overlap (ZB-H2, ZB-V) are compared with our own that do")
    view = own[OWN].view
    steps.notes.append(f"no step takes less than {view.bound / 1e6:.1f} ms (bound '{view.bound_by}')")
    best = sorted(known, key=lambda one: one.view.pattern)[:1]
    return [steps, reasons(case, [*best, *own.values()])]


def reasons(case: Case, steps: list[Made]) -> Table:
    """Where the time of steps goes on their busiest ranks."""
    table = Table(
        f"{case}: where the time goes, ms on the busiest rank",
        ("schedule", "step", "work", "optimizer", "fill, drain", "messages", "other ranks", "busiest / mean", "width"),
    )
    for one in steps:
        parts = split(one.view, busiest(one.view))
        assert one.view.pattern == sum(vars(parts).values())
        times = (one.view.pattern, parts.work, parts.optimizer, parts.ends, parts.messages, parts.others)
        ratios = (imbalance(one.view), price_of_width(one.view))
        table.add(one.name, *(round(time / 1e6, 1) for time in times), *(round(ratio, 3) for ratio in ratios))
    table.notes.append("width: accelerator time of all operators, by the least that any sets of accelerators allow")
    return table


def run(options: Options) -> list[Table]:
    """The tables of this section."""
    cases = QUICK if options.quick else CASES
    return [table for case in cases for table in tables(case, 0.1 if options.quick else 3)]
