"""Attributes of the takt dialect. Times are integer nanoseconds, sizes integer bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, IntAttr, IntegerType, StringAttr, i64
from xdsl.ir import Attribute, ParametrizedAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

Ints = DenseArrayBase[IntegerType]


def ints(values: Sequence[int]) -> Ints:
    """A dense array of 64-bit integers."""
    return DenseArrayBase.from_list(i64, list(values))


def values(array: Ints) -> tuple[int, ...]:
    """The integers of a dense array."""
    return tuple(int(v) for v in array.iter_values())


# --- accelerator sets, written as slices: [0:8, 12:13] ---------------------------------------


def print_set(printer: Printer, members: Sequence[int]) -> None:
    """Print sorted accelerators as half-open ranges, e.g. ``[0:8, 12:13]``."""
    ranges: list[tuple[int, int]] = []
    for m in members:
        if ranges and ranges[-1][1] == m:
            ranges[-1] = (ranges[-1][0], m + 1)
        else:
            ranges.append((m, m + 1))
    with printer.in_square_brackets():
        printer.print_list(ranges, lambda r: printer.print_string(f"{r[0]}:{r[1]}"))


def parse_set(parser: AttrParser) -> Ints:
    """Parse what :func:`print_set` prints."""

    def parse_range() -> range:
        lo = parser.parse_integer(allow_boolean=False)
        parser.parse_punctuation(":")
        return range(lo, parser.parse_integer(allow_boolean=False))

    ranges = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parse_range)
    return ints([m for r in ranges for m in r])


def _parse_ints(parser: AttrParser) -> list[int]:
    return parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: parser.parse_integer(allow_boolean=False))


def _print_ints(printer: Printer, array: Ints) -> None:
    with printer.in_square_brackets():
        printer.print_list(values(array), lambda v: printer.print_string(str(v)))


# --- attributes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostEntry:
    """What one allotment costs: ``time`` in ns; the rest in bytes on each accelerator of the set."""

    time: int
    params: int = 0
    output: int = 0
    workspace: int = 0


@irdl_attr_definition
class CostAttr(ParametrizedAttribute):
    """The moldable cost table of an operator: one column per admissible allotment.

    Times need not fall with the allotment, and allotments may be missing.

    ```
    #takt.cost<[1, 2, 4] time [812000, 430000, 251000] params [64, 32, 16] output [8, 4, 2]>
    ```
    """

    name = "takt.cost"

    allotments: Ints
    time: Ints
    params: Ints
    output: Ints
    workspace: Ints

    @staticmethod
    def from_table(table: Mapping[int, CostEntry]) -> CostAttr:
        rows = sorted(table.items())
        return CostAttr(
            ints([k for k, _ in rows]),
            ints([e.time for _, e in rows]),
            ints([e.params for _, e in rows]),
            ints([e.output for _, e in rows]),
            ints([e.workspace for _, e in rows]),
        )

    def table(self) -> Mapping[int, CostEntry]:
        """Allotment → cost, in increasing order of allotment. Do not modify it: it is shared."""
        return _table(self)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            allotments = _parse_ints(parser)
            parser.parse_keyword("time")
            columns = [allotments, _parse_ints(parser)]
            for name in ("params", "output", "workspace"):
                present = parser.parse_optional_keyword(name) is not None
                columns.append(_parse_ints(parser) if present else [0] * len(allotments))
        return [ints(c) for c in columns]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            _print_ints(printer, self.allotments)
            printer.print_string(" time ")
            _print_ints(printer, self.time)
            for name in ("params", "output", "workspace"):
                column: Ints = getattr(self, name)
                if any(values(column)):
                    printer.print_string(f" {name} ")
                    _print_ints(printer, column)

    def verify(self) -> None:
        columns = {n: values(getattr(self, n)) for n in ("allotments", "time", "params", "output", "workspace")}
        allotments = columns["allotments"]
        if not allotments:
            raise VerifyException("a cost table needs at least one allotment")
        if allotments[0] < 1 or any(a >= b for a, b in pairwise(allotments)):
            raise VerifyException(f"allotments must be positive and increasing, got {list(allotments)}")
        for name, column in columns.items():
            if len(column) != len(allotments):
                raise VerifyException(f"{len(allotments)} allotments but {len(column)} entries of '{name}'")
            if any(v < 0 for v in column):
                raise VerifyException(f"'{name}' must not be negative, got {list(column)}")


@lru_cache(maxsize=65536)
def _table(cost: CostAttr) -> Mapping[int, CostEntry]:
    columns = (values(c) for c in (cost.allotments, cost.time, cost.params, cost.output, cost.workspace))
    return {k: CostEntry(t, p, o, w) for k, t, p, o, w in zip(*columns, strict=True)}


@irdl_attr_definition
class BlockAttr(ParametrizedAttribute):
    """Which call of which block an operator was expanded from: ``#takt.block<"decoder", 17>``."""

    name = "takt.block"

    block: StringAttr
    index: IntAttr

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            block = parser.parse_str_literal()
            parser.parse_punctuation(",")
            return [StringAttr(block), IntAttr(parser.parse_integer(allow_boolean=False, allow_negative=False))]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string_literal(self.block.data)
            printer.print_string(f", {self.index.data}")


@irdl_attr_definition
class SlotAttr(ParametrizedAttribute):
    """Where and when an operator runs: allotment, one accelerator set per copy, first start in ns.

    Instance ``i`` runs on set ``i mod copies`` in ``[start + i*T, start + i*T + time)``.

    ```
    #takt.slot<4 on [8:12] at 123456>
    ```
    """

    name = "takt.slot"

    allotment: IntAttr
    sets: ArrayAttr[Ints]
    start: IntAttr

    @staticmethod
    def make(sets: Sequence[Sequence[int]], start: int) -> SlotAttr:
        return SlotAttr(IntAttr(len(sets[0])), ArrayAttr([ints(sorted(s)) for s in sets]), IntAttr(start))

    def copies(self) -> tuple[tuple[int, ...], ...]:
        """The accelerator set of each copy, sorted."""
        return tuple(values(s) for s in self.sets.data)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            allotment = parser.parse_integer(allow_boolean=False)
            parser.parse_keyword("on")
            sets = [parse_set(parser)]
            while parser.parse_optional_punctuation(",") is not None:
                sets.append(parse_set(parser))
            parser.parse_keyword("at")
            return [IntAttr(allotment), ArrayAttr(sets), IntAttr(parser.parse_integer(allow_boolean=False))]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(f"{self.allotment.data} on ")
            printer.print_list(self.copies(), lambda s: print_set(printer, s))
            printer.print_string(f" at {self.start.data}")

    def verify(self) -> None:
        if not self.sets.data:
            raise VerifyException("a slot needs at least one accelerator set")


@irdl_attr_definition
class ScheduleAttr(ParametrizedAttribute):
    """The periodic schedule of a graph and its certificate.

    The pattern of ``pattern`` ns repeats every ``microbatches`` micro-batches, so the period is
    ``pattern / microbatches``. ``bound`` is a proven lower bound on the period in ns, rounded up to
    the next integer when that is still a bound, and ``bound_by`` names the argument that proves it.

    ```
    #takt.schedule<8123000 for 1, bound 7912345 by "area", plan "stages", engine "stage-dp", seed 0>
    ```
    """

    name = "takt.schedule"

    pattern: IntAttr
    microbatches: IntAttr
    bound: IntAttr
    bound_by: StringAttr
    plan: StringAttr
    engine: StringAttr
    seed: IntAttr

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        def integer() -> IntAttr:
            return IntAttr(parser.parse_integer(allow_boolean=False))

        def word(keyword: str) -> StringAttr:
            parser.parse_punctuation(",")
            parser.parse_keyword(keyword)
            return StringAttr(parser.parse_str_literal())

        with parser.in_angle_brackets():
            pattern = integer()
            parser.parse_keyword("for")
            microbatches = integer()
            parser.parse_punctuation(",")
            parser.parse_keyword("bound")
            bound = integer()
            parser.parse_keyword("by")
            bound_by = StringAttr(parser.parse_str_literal())
            plan, engine = word("plan"), word("engine")
            parser.parse_punctuation(",")
            parser.parse_keyword("seed")
            return [pattern, microbatches, bound, bound_by, plan, engine, integer()]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(f"{self.pattern.data} for {self.microbatches.data}, bound {self.bound.data} by ")
            printer.print_string_literal(self.bound_by.data)
            printer.print_string(", plan ")
            printer.print_string_literal(self.plan.data)
            printer.print_string(", engine ")
            printer.print_string_literal(self.engine.data)
            printer.print_string(f", seed {self.seed.data}")


@irdl_attr_definition
class LinkAttr(ParametrizedAttribute):
    """One level of the network: groups of ``size`` accelerators joined by links of this kind.

    ``bandwidth`` is bytes per second and accelerator in one direction, ``latency`` ns per message.
    Levels go from the innermost group outwards; the last one spans the platform.

    ```
    #takt.link<"node" 8, latency 3000, bandwidth 300000000000>
    ```
    """

    name = "takt.link"

    group: StringAttr
    size: IntAttr
    latency: IntAttr
    bandwidth: IntAttr

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            group = StringAttr(parser.parse_str_literal())
            numbers = [parser.parse_integer(allow_boolean=False)]
            for name in ("latency", "bandwidth"):
                parser.parse_punctuation(",")
                parser.parse_keyword(name)
                numbers.append(parser.parse_integer(allow_boolean=False))
            return [group, *(IntAttr(n) for n in numbers)]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string_literal(self.group.data)
            printer.print_string(f" {self.size.data}, latency {self.latency.data}, bandwidth {self.bandwidth.data}")

    def verify(self) -> None:
        if self.size.data < 1 or self.latency.data < 0 or self.bandwidth.data < 1:
            raise VerifyException("a link needs a positive group size, latency >= 0 and a positive bandwidth")
