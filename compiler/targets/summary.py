"""``--emit summary``: what a person acts on, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from io import StringIO

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from xdsl.dialects.builtin import ModuleOp

from compiler.links import Level
from compiler.simulate.versions import alive, parameters
from compiler.targets.analysis import Analysis, StageRow
from compiler.targets.console import text_console
from compiler.targets.step_analysis import StepAnalysis
from compiler.targets.text import counted, percent, place_of, ranges, rate, route_of, short_bytes, short_time
from compiler.view import ScheduleView, Task
from dialects.diagnostics import TaktError

MOST_STAGES = 32
"""Rows of the stage table; of more stages the middle is left out."""


def emit(module: ModuleOp, *, width: int | None = None, colour: bool = False, microbatches: int | None = None) -> str:
    """The summary of a scheduled module, ``width`` columns wide (None: the terminal's).

    With ``microbatches``, also the time of a step of so many: from the first start to the last end.
    ``colour`` adds terminal colours; leave it off when the text goes to a file.
    """
    if microbatches is not None and microbatches < 1:
        raise TaktError(f"a step of {microbatches} micro-batches: it has at least 1")
    stream = StringIO()
    console = text_console(stream, width, colour)
    analysis = analysis_of(module)
    console.print(_title(analysis))
    if isinstance(analysis, StepAnalysis):
        from compiler.targets.summary_step import figures, told

        rows, critical = figures(analysis), told
    else:
        rows, critical = _figures(analysis, microbatches), _critical
    console.print(Padding(rows, (0, 0, 0, 2)))
    if analysis.stages:
        console.print(_stages(analysis, console.width))
    if analysis.heaviest:
        console.print(critical(analysis))
    for sentence in analysis.advice():
        console.print(Text("> " + sentence, "cyan"))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def analysis_of(module: ModuleOp) -> Analysis:
    """The analysis of a schedule, or of a step."""
    found = Analysis(module)
    return StepAnalysis(module) if found.view.step else found


def _title(analysis: Analysis) -> Text:
    view = analysis.view
    p = view.platform
    text = Text.assemble((view.graph, "bold"), f" on {p.name}: {p.accelerators} x {p.accelerator}")
    text.append(f", plan '{view.plan}' by {view.engine}, seed {view.seed}", "dim")
    return text


def about_model(analysis: Analysis) -> Table:
    """The rows of a table of figures that say what is scheduled."""
    view = analysis.view
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    params = sum(view.parameters.values())
    optimizer = "none" if view.training is None else view.training[0]
    held = "parameters" if view.training is None else "parameters and gradients"
    if optimizer != "none":
        held = "parameters, gradients and optimizer state"
    table.add_row("model", f"{counted(len(view.tasks), 'operator')}, {short_bytes(params)} of {held} as placed")
    if view.training is not None:
        told = view.step or view.asynchronous or optimizer == "none"
        out = "" if told else "; its step, once a batch, is not in the period"
        table.add_row("training", _training(*view.training) + out)
    if view.asynchronous:
        table.add_row("asynchronous", _asynchronous(view))
    if again := [t for t in view.tasks if t.kind == "recompute"]:
        table.add_row("recomputed", _again(again, view.tasks))
    return table


def _figures(analysis: Analysis, microbatches: int | None) -> Table:
    view, table = analysis.view, about_model(analysis)
    table.add_row("period", Text.assemble((short_time(view.period), "bold"), f"  ({rate(view.period)})"))
    if view.microbatches > 1:
        table.add_row("pattern", f"{short_time(view.pattern)} for {view.microbatches} micro-batches")
    table.add_row("lower bound", f"{short_time(view.bound)}  ({view.bound_by}); the period is {above(analysis)}")
    table.add_row("bounds", _bounds(analysis))
    flight = "1 micro-batch" if view.in_flight == 1 else f"{view.in_flight} micro-batches"
    table.add_row("latency", f"{short_time(view.latency)}, {flight} in flight")
    if microbatches is not None:
        step = view.latency + (microbatches - 1) * view.period
        table.add_row("step", f"{short_time(step)} for {counted(microbatches, 'micro-batch', 'micro-batches')}")
    if view.limits:
        table.add_row("limits", limits(analysis))
    table.add_row("memory", memory(analysis))
    table.add_row("load", _load(analysis))
    add_transfers(table, analysis)
    return table


def add_transfers(table: Table, analysis: Analysis) -> None:
    """Rows about what is moved."""
    crossing, cycle = analysis.view.crossing, "step" if analysis.view.step else "period"
    table.add_row("transfers", f"{short_bytes(round(crossing))} cross between accelerator sets per micro-batch")
    for level in analysis.levels:
        table.add_row(f"link {level.name}", _level(level, cycle))
    if analysis.standstill:
        table.add_row("standstill", _standstill(analysis, cycle))


def _asynchronous(view: ScheduleView) -> str:
    every = "every micro-batch" if view.asynchronous == 1 else f"every {view.asynchronous} micro-batches"
    most = max((alive(view, update) for update in view.updates), default=1)
    more = sum(parameters(view).values()) - sum(view.parameters.values())
    return f"parameters updated after {every}, at most {counted(most, 'version')} at once: {short_bytes(more)} more"


def _training(optimizer: str, precision: str) -> str:
    """What the parameters include."""
    kept = "without an optimizer" if optimizer == "none" else f"{optimizer} in {precision} precision"
    return f"forward and backward, {kept}"


def _again(again: Sequence[Task], tasks: Sequence[Task]) -> str:
    """What is computed twice, and its share of all work: time by accelerators."""
    work, whole = (sum(t.time * t.allotment for t in some) for some in (again, tasks))
    return f"{counted(len(again), 'operator')} of the forward pass, {work / max(1, whole):.1%} of all work"


def limits(analysis: Analysis) -> str:
    """Every limit kept, behind what is used of it: ``in flight 8 of 10``."""
    view = analysis.view
    fullest = sum(analysis.memory.get(analysis.fullest, (0, 0)))
    used: dict[str, tuple[str, str]] = {}
    for name, most in view.limits.items():
        if name == "in_flight":
            used["in flight"] = (str(view.in_flight), str(most))
        elif name == "latency":
            used[name] = (short_time(view.latency), short_time(most))
        else:
            used[name] = (short_bytes(fullest if name == "memory" else round(view.crossing)), short_bytes(most))
    return ", ".join(f"{name} {found} of {most}" for name, (found, most) in used.items())


def above(analysis: Analysis) -> str:
    """How far the period, or the step, is above its bound."""
    view = analysis.view
    if (view.pattern if view.step else view.period) <= view.bound:
        return "optimal"
    return "not bounded by it" if view.gap is None else f"at most {percent(view.gap, 2)} above it"


def _bounds(analysis: Analysis) -> Text:
    bounds = sorted(analysis.bounds, key=lambda b: -b.value)
    text = Text(", ".join(f"{b.name} {short_time(b.value)}" for b in bounds), "dim")
    if bounds:
        out = f", it leaves out {bounds[0].leaves_out}" if bounds[0].leaves_out else ""
        text.append(f"; {bounds[0].name} is tight{out}")
    return text


def memory(analysis: Analysis) -> str:
    """The fullest accelerator, and with what."""
    params, rest = analysis.memory.get(analysis.fullest, (0, 0))
    have = analysis.view.platform.memory
    share = f"{(params + rest) / have:.0%}" if have else "all"
    return (
        f"at most {short_bytes(params + rest)} of {short_bytes(have)} ({share}), on accelerator {analysis.fullest}: "
        f"{short_bytes(params)} parameters, {short_bytes(rest)} values and workspace"
    )


def _load(analysis: Analysis) -> str:
    loads = analysis.loads.values()
    text = (
        f"min {percent(min(loads))}, mean {percent(analysis.mean_load)}, max {percent(max(loads))}; "
        f"bubble {percent(1 - analysis.mean_load)}"
    )
    if analysis.idle:
        text += f"; {counted(len(analysis.idle), 'accelerator')} idle ({ranges(analysis.idle)})"
    return text


def _level(level: Level, cycle: str) -> str:
    text = f"{counted(level.transfers, 'transfer')}, {short_bytes(round(level.size))} per micro-batch"
    if level.busiest is None:
        return text
    return f"{text}; busy for at most {percent(level.load)} of the {cycle}, {place_of([level.busiest])}"


def _standstill(analysis: Analysis, cycle: str) -> str:
    """What transfers that stop accelerators cost."""
    still, p = analysis.standstill, max(analysis.standstill, key=analysis.standstill.__getitem__)
    mean = sum(still.values(), Fraction(0)) / len(analysis.loads)
    return f"mean {percent(mean)}, max {percent(still[p])} of the {cycle} on accelerator {p}, for transfers"


COLUMNS: tuple[str, ...] = (
    "stage",
    "accelerators",
    "ops",
    "first .. last",
    "busy",
    "of T",
    "params",
    "peak",
    "allotments",
)
SPAN = 3
"""The column that gives way when the terminal is narrow."""
DROPPED = (4, 8, 6, 2)
"""Columns to leave out, in this order, where even that is not enough."""
LEAST_SPAN = 18


def _stages(analysis: Analysis, width: int) -> Table:
    critical = set(analysis.critical_stages)
    rows = [
        None if stage is None else (_cells(analysis, stage, stage.index in critical), stage.index in critical)
        for stage in _shown(analysis.stages, critical)
    ]
    titles = COLUMNS
    if isinstance(analysis, StepAnalysis):
        titles = ("rank.chunk" if analysis.chunked else "rank", *COLUMNS[1:5], "of P", *COLUMNS[6:])
    widths = [max(len(cells[c]) for cells in [titles, *(r[0] for r in rows if r)]) for c in range(len(COLUMNS))]
    shown = list(range(len(COLUMNS)))

    def room() -> int:
        return width - sum(widths[c] + 3 for c in shown if c != SPAN)

    for column in DROPPED:
        if room() < min(LEAST_SPAN, widths[SPAN]):
            shown.remove(column)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold", collapse_padding=True)
    for c in shown:
        size = max(12, min(widths[c], room())) if c == SPAN else widths[c]
        left = c in (1, SPAN, len(COLUMNS) - 1)
        table.add_column(titles[c], justify="left" if left else "right", no_wrap=True, overflow="ellipsis", width=size)
    for row in rows:
        if row is None:
            table.add_row("...")
        else:
            table.add_row(*(row[0][c] for c in shown), style="yellow" if row[1] else None)
    return table


def _cells(analysis: Analysis, stage: StageRow, critical: bool) -> tuple[str, ...]:
    return (
        f"{'*' if critical else ''}{stage.label}",
        ranges(stage.granted),
        f"{len(stage.tasks)}+{len(stage.back)}" if stage.back else str(len(stage.tasks)),
        stage.span,
        short_time(stage.load * (analysis.view.pattern if analysis.view.step else analysis.view.period)),
        percent(stage.load),
        short_bytes(stage.params),
        short_bytes(stage.memory),
        _allotments(stage),
    )


def _shown(stages: tuple[StageRow, ...], critical: set[int]) -> Iterable[StageRow | None]:
    if len(stages) <= MOST_STAGES:
        yield from stages
        return
    half, skipped = MOST_STAGES // 2, False
    for position, stage in enumerate(stages):
        if position < half or position >= len(stages) - half or (stage.index in critical and len(critical) < half):
            skipped = False
            yield stage
        elif not skipped:
            skipped = True
            yield None


def _allotments(stage: StageRow) -> str:
    used = stage.allotments
    if len(used) == 1:
        return f"all on {next(iter(used))}"
    return ", ".join(f"{n} on {k}" for k, n in sorted(used.items(), reverse=True))


def _critical(analysis: Analysis) -> Text:
    view = analysis.view
    several = len(analysis.critical) > 1
    places = f"accelerators {ranges(analysis.critical)}" if several else f"accelerator {min(analysis.critical)}"
    text = Text()
    if analysis.critical_links:
        text = _critical_link(analysis)
        text.append(f" The busiest accelerators (*) are {ranges(analysis.critical)}")
    else:
        text = Text.assemble(("critical", "bold"), f" (*): {places}")
    text.append(f", busy for {percent(max(analysis.taken.values()), 2)} of the period")
    still = analysis.standstill.get(analysis.critical[0])
    text.append(f" ({percent(still)} for transfers)" if still else "")
    text.append("; longest operators there: ")
    shown = [f"{t.name} {short_time(t.time)} on {t.allotment}" for t in analysis.heaviest[:3]]
    text.append(", ".join(shown))
    longest = next(iter(analysis.heaviest))
    text.append(f" ({percent(longest.time / (view.period * len(longest.copies)))} of the period).")
    return text


def _critical_link(analysis: Analysis) -> Text:
    """Which link decides the period, where no accelerator does."""
    view, links = analysis.view, analysis.critical_links
    load = next(level.load for level in analysis.levels if level.name == links[0].link)
    text = Text.assemble(("critical", "bold"), f": link {links[0].link}, {place_of(links)}")
    text.append(f", busy for {percent(load, 2)} of the period; longest transfers there: ")
    shown = [f"{route_of(view, m, 0)} {short_time(m.time)}" for m in analysis.heaviest_moves[:3]]
    text.append(", ".join(shown) + ".")
    return text
