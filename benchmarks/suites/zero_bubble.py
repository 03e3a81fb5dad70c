"""The twelve measured rows of Qi, Wan, Huang, Lin, "Zero Bubble Pipeline Parallelism", ICLR 2024.

Bubble rates that ``run`` gives to orders made from definitions, beside those that the authors printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from passes.scheduling.steps.cells import Cell, Line, Stage
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.run import run as simulate
from suites.instances import Absent, instance_folder, read_rows
from suites.table import Options, Table, skipped

TITLE = "Bubble rates of the twelve rows of the zero-bubble paper"


@dataclass(frozen=True)
class Case:
    """A row: p ``ranks``, m ``microbatches``, what a whole rank takes (ns), and the rates that were printed."""

    model: str
    ranks: int
    microbatches: int
    times: tuple[int, int, int]
    delay: int
    layers: int
    printed: dict[str, float]

    def stage(self, chunks: int = 1) -> Stage:
        """One of ``chunks`` equal parts of a rank."""
        return Stage(0, *(round(time / chunks) for time in self.times))

    def rate(self, cost: int) -> float:
        """The share of a cost that is not work."""
        return 1 - self.microbatches * sum(self.times) / cost


class AsPrinted(Line):
    """Interleaved stages as the authors' script counts them (``get_interleave_schedule`` of their ``efficiency.py``).

    Of p micro-batches in a row only the first waits for what crosses from one chunk to the next, between the last rank
    and the first. Waits along the ranks are complete.
    """

    def needs(self, cell: Cell, whole: bool) -> Iterator[Cell]:
        for need in super().needs(cell, whole):
            apart = abs(self.stages[need.stage].rank - self.stages[cell.stage].rank)
            if apart <= 1 or cell.microbatch % self.ranks == 0:
                yield need


def known(name: str) -> Callable[[Case], float]:
    """The rate of a known schedule; one with chunks has a layer in each, as in the paper's section 5.1."""

    def rate(case: Case) -> float:
        chunks = KNOWN[name].chunks or case.layers // case.ranks
        line = KNOWN[name].line(case.ranks, case.stage(chunks), case.delay, chunks)
        return case.rate(KNOWN[name].cost(simulate(line, KNOWN[name].generate(line, case.microbatches))))

    return rate


def interleaved_as_printed(case: Case) -> float:
    """The rate of interleaved 1F1B with the waits that the authors' script knows."""
    schedule, chunks = KNOWN["interleaved 1F1B"], case.layers // case.ranks
    line = schedule.line(case.ranks, case.stage(chunks), case.delay, chunks)
    return case.rate(simulate(AsPrinted(line.stages, line.delay), schedule.generate(line, case.microbatches)).makespan)


@dataclass(frozen=True)
class Column:
    """Rates of one schedule: simulated, printed in a column of the file, or both side by side."""

    title: str
    rate: Callable[[Case], float] | None
    printed: str | None = None

    @property
    def titles(self) -> Iterator[str]:
        if self.rate:
            yield self.title
        if self.printed:
            yield f"{self.title} paper"

    def cells(self, case: Case) -> Iterator[float]:
        if self.rate:
            yield round(self.rate(case), 4)
        if self.printed:
            yield case.printed[self.printed]


COLUMNS = (
    Column("1F1B", known("1F1B"), "1F1B"),
    Column("1F1B-I", interleaved_as_printed, "1F1B_interleaved"),
    Column("1F1B-I, all waits", known("interleaved 1F1B")),
    Column("ZB-H1", known("ZB-H1"), "ZB_H1"),
    Column("ZB-H2", known("ZB-H2"), "ZB_H2"),
    Column("ZB-V", known("ZB-V")),
    Column("ZB-1p", None, "ZB_1p"),
    Column("ZB-2p", None, "ZB_2p"),
)


def cases() -> list[Case]:
    """The rows of the file; times there are us."""
    rows = read_rows(instance_folder("zero-bubble") / "iclr24_settings_and_bubble_rates.csv")
    return [
        Case(
            row["model"],
            int(row["p_stages"]),
            int(row["m_microbatches"]),
            (int(row["T_F_us"]) * 1000, int(row["T_B_us"]) * 1000, int(row["T_W_us"]) * 1000),
            int(row["T_comm_us"]) * 1000,
            int(row["layers"]),
            {key.removeprefix("bubble_"): float(value) for key, value in row.items() if key.startswith("bubble_")},
        )
        for row in rows
    ]


def run(options: Options) -> list[Table]:
    """One row a case; rates that can be compared are followed by what was printed."""
    try:
        given = cases()
    except Absent as reason:
        return [skipped(TITLE, str(reason))]
    table = Table(TITLE, ("model", "p", "m", *(title for column in COLUMNS for title in column.titles)))
    equal: list[bool] = []
    for case in given[:2] if options.quick else given:
        rates = [tuple(column.cells(case)) for column in COLUMNS]
        equal += [pair[0] == pair[1] for pair in rates if len(pair) == 2]
        table.add(case.model, case.ranks, case.microbatches, *(rate for cells in rates for rate in cells))
    table.notes += [
        f"{sum(equal)} of {len(equal)} rates equal the printed ones to four digits.",
        "1F1B, 1F1B-I and ZB-H1 by makespan; ZB-H2 and ZB-V by the longest span of a rank, as ZB-1p and ZB-2p are.",
        "1F1B-I is interleaved 1F1B; its printed rates leave out waits between the last rank and the first.",
        "ZB-V has half a rank in each of its two chunks; these rows were not printed for it.",
    ]
    return [table]
