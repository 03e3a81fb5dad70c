"""Attributes of the takt dialect. Times are integer nanoseconds, sizes integer bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Self, cast

from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, DictionaryAttr, IntAttr, IntegerType, StringAttr, i64
from xdsl.ir import Attribute, ParametrizedAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

Ints = DenseArrayBase[IntegerType]

MOST_ACCELERATORS = 2**20
"""No platform has more; keeps a mistyped range from filling the memory."""


def ints(values: Sequence[int]) -> Ints:
    """A dense array of 64-bit integers."""
    return DenseArrayBase.from_list(i64, list(values))


def values(array: Ints) -> tuple[int, ...]:
    """The integers of a dense array."""
    return tuple(int(v) for v in array.iter_values())


# --- accelerator sets, written as slices: [0:8, 12:13] ---------------------------------------


@lru_cache(maxsize=4096)
def members(accelerators: Ints) -> tuple[int, ...]:
    """The accelerators of a set; schedules repeat few distinct sets many times."""
    return values(accelerators)


def show_set(accelerators: Sequence[int]) -> str:
    """Sorted accelerators as half-open ranges: ``[0:8, 12:13]``."""
    ranges: list[list[int]] = []
    for m in accelerators:
        if ranges and ranges[-1][1] == m:
            ranges[-1][1] = m + 1
        else:
            ranges.append([m, m + 1])
    return "[" + ", ".join(f"{low}:{high}" for low, high in ranges) + "]"


def print_set(printer: Printer, accelerators: Sequence[int]) -> None:
    """Print accelerators as :func:`show_set` writes them."""
    printer.print_string(show_set(accelerators))


def parse_set(parser: AttrParser) -> Ints:
    """Parse what :func:`print_set` prints: non-empty ranges, increasing and disjoint."""
    found: list[int] = []

    def parse_range() -> None:
        position = parser.pos
        low = parse_integer(parser)
        parser.parse_punctuation(":")
        high = parse_integer(parser)
        if not 0 <= low < high <= MOST_ACCELERATORS:
            parser.raise_error(f"{low}:{high} is no range of accelerators below {MOST_ACCELERATORS}", position)
        if found and low <= found[-1]:
            parser.raise_error(f"range {low}:{high} must start after accelerator {found[-1]}", position)
        found.extend(range(low, high))

    position = parser.pos
    parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parse_range)
    if not found:
        parser.raise_error("a set of accelerators must not be empty", position)
    return ints(found)


def check_set(array: Ints) -> None:
    """Raise VerifyException unless ``array`` is a set of accelerators: 64-bit, sorted, without repetition."""
    if array.elt_type != i64:
        raise VerifyException(f"a set of accelerators is a list of i64, got {array.elt_type}")
    found = values(array)
    if not found:
        raise VerifyException("a set of accelerators must not be empty")
    if found[0] < 0 or found[-1] >= MOST_ACCELERATORS:
        raise VerifyException(f"accelerators are numbered from 0 and below {MOST_ACCELERATORS}, got {_excerpt(found)}")
    if any(a >= b for a, b in pairwise(found)):
        raise VerifyException(f"accelerators of a set must increase, got {_excerpt(found)}")


def _excerpt(found: Sequence[int]) -> str:
    shown = ", ".join(str(m) for m in found[:8])
    return f"[{shown}{', ...' if len(found) > 8 else ''}]"


def parse_integer(parser: AttrParser) -> int:
    """Parse an integer of 64 bits."""
    position = parser.pos
    value = parser.parse_integer(allow_boolean=False)
    if not -(2**63) <= value < 2**63:
        parser.raise_error(f"{value} does not fit in 64 bits", position)
    return value


def parse_text(parser: AttrParser) -> StringAttr:
    """Parse a string literal of any characters; xDSL reads one with escaped bytes beyond ASCII as bytes."""
    position = parser.pos
    if (data := parser.parse_optional_bytes_literal()) is None:
        return StringAttr(parser.parse_str_literal())
    try:
        return StringAttr(data.decode())
    except UnicodeDecodeError:
        parser.raise_error("a string must be UTF-8", position)


def parse_optional_ints(parser: AttrParser) -> Ints | None:
    listed = parser.parse_optional_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_integer(parser))
    return None if listed is None else ints(listed)


def parse_ints(parser: AttrParser) -> Ints:
    return ints(parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_integer(parser)))


def parse_starts(parser: AttrParser) -> list[int]:
    """Parse what :func:`show_starts` writes."""
    position = parser.pos
    listed = parser.parse_optional_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_integer(parser))
    if listed is None:
        return [parse_integer(parser)]
    if not listed:
        parser.raise_error("a list of starts must not be empty", position)
    return listed


def show_starts(starts: Sequence[int]) -> str:
    """One start as it is, those of the micro-batches of a step as a list."""
    return str(starts[0]) if len(starts) == 1 else str(list(starts))


def print_ints(printer: Printer, array: Ints) -> None:
    with printer.in_square_brackets():
        printer.print_list(values(array), lambda v: printer.print_string(str(v)))


def check_integers(**fields: tuple[IntAttr, int]) -> None:
    """Each named field must be a 64-bit integer of at least its second entry."""
    for name, (attr, least) in fields.items():
        if not least <= attr.data < 2**63:
            raise VerifyException(f"'{name}' must be a 64-bit integer of at least {least}, got {attr.data}")


class BracketedAttribute(ParametrizedAttribute, ABC):
    """An attribute whose parameters stand in angle brackets: ``#takt.name<...>``, or ``<...>`` inside an operation."""

    @classmethod
    @abstractmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        """Parse what stands between the brackets."""

    @classmethod
    def parse_body(cls, parser: AttrParser) -> Self:
        """Parse the bracketed parameters; a value that does not verify is an error at the bracket."""
        position = parser.pos
        try:
            with parser.in_angle_brackets():
                return cls.parse_fields(parser)
        except VerifyException as error:
            parser.raise_error(str(error), position)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        return cls.parse_body(parser).parameters


# --- attributes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostEntry:
    """What one allotment costs: ``time`` in ns; the rest in bytes on each accelerator of the set."""

    time: int
    params: int = 0
    output: int = 0
    workspace: int = 0
    version: int = 0
    """Of a graph that is trained asynchronously: one more version of the parameters."""


BYTES = ("params", "output", "workspace", "version")
"""The columns of a cost table that hold bytes; one of zeros is not written."""


@irdl_attr_definition
class CostAttr(BracketedAttribute):
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
    version: Ints

    @staticmethod
    def from_table(table: Mapping[int, CostEntry]) -> CostAttr:
        rows = sorted(table.items())
        return CostAttr(
            ints([k for k, _ in rows]),
            ints([e.time for _, e in rows]),
            ints([e.params for _, e in rows]),
            ints([e.output for _, e in rows]),
            ints([e.workspace for _, e in rows]),
            ints([e.version for _, e in rows]),
        )

    def table(self) -> Mapping[int, CostEntry]:
        """Allotment → cost, in increasing order of allotment. Do not modify it: it is shared."""
        return _table(self)

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        allotments = parse_ints(parser)
        parser.parse_keyword("time")
        columns = [allotments, parse_ints(parser)]
        for name in BYTES:
            present = parser.parse_optional_keyword(name) is not None
            columns.append(parse_ints(parser) if present else ints([0] * len(allotments)))
        return cls(*columns)

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            print_ints(printer, self.allotments)
            printer.print_string(" time ")
            print_ints(printer, self.time)
            for name in BYTES:
                column: Ints = getattr(self, name)
                if any(values(column)):
                    printer.print_string(f" {name} ")
                    print_ints(printer, column)

    def verify(self) -> None:
        columns: dict[str, tuple[int, ...]] = {}
        for name in ("allotments", "time", *BYTES):
            array: Ints = getattr(self, name)
            if array.elt_type != i64:
                raise VerifyException(f"'{name}' is a list of i64, got {array.elt_type}")
            columns[name] = values(array)
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
    columns = (cost.allotments, cost.time, cost.params, cost.output, cost.workspace, cost.version)
    return {k: CostEntry(*row) for k, *row in zip(*map(values, columns), strict=True)}


@irdl_attr_definition
class BlockAttr(BracketedAttribute):
    """Which call of which block an operator was expanded from: ``#takt.block<"decoder", 17>``."""

    name = "takt.block"

    block: StringAttr
    index: IntAttr

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        block = parse_text(parser)
        parser.parse_punctuation(",")
        return cls(block, IntAttr(parse_integer(parser)))

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string_literal(self.block.data)
            printer.print_string(f", {self.index.data}")

    def verify(self) -> None:
        check_integers(index=(self.index, 0))


@irdl_attr_definition
class SlotAttr(BracketedAttribute):
    """Where and when an operator runs: allotment, one accelerator set per copy, first start in ns.

    Instance ``i`` runs on set ``i mod copies`` in ``[start + i*T, start + i*T + time)``. In a step of ``m``
    micro-batches each has a start of its own, ``later`` are those of micro-batches ``1 .. m - 1``.

    ```
    #takt.slot<4 on [8:12] at 123456>
    #takt.slot<4 on [8:12] at [0, 123456, 600000]>
    ```
    """

    name = "takt.slot"

    allotment: IntAttr
    sets: ArrayAttr[Ints]
    start: IntAttr
    later: Ints

    @staticmethod
    def make(sets: Sequence[Sequence[int]], start: int | Sequence[int]) -> SlotAttr:
        """A slot; a sequence of starts, one for each micro-batch, in a step."""
        first, *later = [start] if isinstance(start, int) else start
        held = ArrayAttr([ints(sorted(s)) for s in sets])
        return SlotAttr(IntAttr(len(sets[0])), held, IntAttr(first), ints(later))

    @property
    def starts(self) -> tuple[int, ...]:
        """Starts of micro-batches 0, 1, ... of a step; of micro-batch 0 alone where they follow by the period."""
        return (self.start.data, *values(self.later))

    def copies(self) -> tuple[tuple[int, ...], ...]:
        """The accelerator set of each copy, sorted."""
        return tuple(members(s) for s in self.sets.data)

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        allotment = IntAttr(parse_integer(parser))
        parser.parse_keyword("on")
        sets = [parse_set(parser)]
        while parser.parse_optional_punctuation(",") is not None:
            sets.append(parse_set(parser))
        parser.parse_keyword("at")
        first, *later = parse_starts(parser)
        return cls(allotment, ArrayAttr(sets), IntAttr(first), ints(later))

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(f"{self.allotment.data} on ")
            printer.print_list(self.copies(), lambda s: print_set(printer, s))
            printer.print_string(f" at {show_starts(self.starts)}")

    def verify(self) -> None:
        if not self.sets.data:
            raise VerifyException("a slot needs at least one accelerator set")
        if self.later.elt_type != i64:
            raise VerifyException("starts are integers of 64 bits")
        for accelerators in self.sets.data:
            check_set(accelerators)
        check_integers(allotment=(self.allotment, 1), start=(self.start, -(2**63)))


LIMITS = ("in_flight", "latency", "memory", "crossing")
"""What a schedule may be held to: micro-batches in flight, latency in ns, bytes on an accelerator, bytes that cross."""


@irdl_attr_definition
class LimitsAttr(BracketedAttribute):
    """The most of each figure that a schedule may have, where given: ``#takt.limits<in_flight 8, latency 2000000>``."""

    name = "takt.limits"

    most: DictionaryAttr

    @staticmethod
    def make(most: Mapping[str, int | None]) -> LimitsAttr:
        """Those of ``most``, by the names of :data:`LIMITS`, that are not None."""
        return LimitsAttr(DictionaryAttr({name: IntAttr(v) for name in LIMITS if (v := most.get(name)) is not None}))

    def given(self) -> dict[str, int]:
        """Name → the most allowed, in the order of :data:`LIMITS`."""
        found = cast(Mapping[str, IntAttr], self.most.data)
        return {name: found[name].data for name in LIMITS if name in found}

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        found: dict[str, IntAttr] = {}
        position = parser.pos
        name = parser.parse_optional_keyword_in(LIMITS)
        while name is not None:
            if name in found:
                parser.raise_error(f"the limit '{name}' is given twice", position)
            found[name] = IntAttr(parse_integer(parser))
            if parser.parse_optional_punctuation(",") is None:
                break
            position = parser.pos
            name = parser.expect(
                lambda: parser.parse_optional_keyword_in(LIMITS), f"expected one of {', '.join(LIMITS)}"
            )
        return cls(DictionaryAttr(found))

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(", ".join(f"{name} {most}" for name, most in self.given().items()))

    def verify(self) -> None:
        for name, most in self.most.data.items():
            if name not in LIMITS or not isinstance(most, IntAttr):
                raise VerifyException(f"limits are integers called {', '.join(LIMITS)}, got '{name}'")
            check_integers(**{name: (cast(IntAttr, most), 0)})


@irdl_attr_definition
class ScheduleAttr(BracketedAttribute):
    """The periodic schedule of a graph and its certificate.

    The pattern of ``pattern`` ns repeats every ``microbatches`` micro-batches, so the period is
    ``pattern / microbatches``. ``bound`` is a proven lower bound on the period in ns, rounded up to
    the next integer when that is still a bound, and ``bound_by`` names the argument that proves it.
    ``limits`` are those it was asked to keep; none are written when there are none.

    In a step (``step`` is 1) each micro-batch of the pattern has starts of its own, and ``bound`` is one on the whole
    pattern, which is the time of the step.

    ```
    #takt.schedule<8123000 for 1, bound 7912345 by "area", plan "stages", engine "stage-dp", seed 0>
    #takt.schedule<99000000 step of 8, bound 97000000 by "ranks", plan "1F1B", engine "ramps", seed 0>
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
    limits: LimitsAttr
    step: IntAttr

    def __init__(
        self,
        pattern: IntAttr,
        microbatches: IntAttr,
        bound: IntAttr,
        bound_by: StringAttr,
        plan: StringAttr,
        engine: StringAttr,
        seed: IntAttr,
        limits: LimitsAttr | None = None,
        step: bool | IntAttr = False,
    ) -> None:
        kept = limits or LimitsAttr.make({})
        word = step if isinstance(step, IntAttr) else IntAttr(int(step))
        super().__init__(pattern, microbatches, bound, bound_by, plan, engine, seed, kept, word)

    @property
    def is_step(self) -> bool:
        """Whether each micro-batch of the pattern has starts of its own."""
        return self.step.data == 1

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        def integer() -> IntAttr:
            return IntAttr(parse_integer(parser))

        def word(keyword: str) -> StringAttr:
            parser.parse_punctuation(",")
            parser.parse_keyword(keyword)
            return parse_text(parser)

        pattern = integer()
        step = parser.parse_optional_keyword("step") is not None
        parser.parse_keyword("of" if step else "for")
        microbatches = integer()
        parser.parse_punctuation(",")
        parser.parse_keyword("bound")
        bound = integer()
        parser.parse_keyword("by")
        bound_by = parse_text(parser)
        plan, engine = word("plan"), word("engine")
        parser.parse_punctuation(",")
        parser.parse_keyword("seed")
        seed, limits = integer(), None
        if parser.parse_optional_punctuation(",") is not None:
            parser.parse_keyword("within")
            limits = LimitsAttr.parse_body(parser)
        return cls(pattern, microbatches, bound, bound_by, plan, engine, seed, limits, step)

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            word = "step of" if self.is_step else "for"
            printer.print_string(f"{self.pattern.data} {word} {self.microbatches.data}, bound {self.bound.data} by ")
            printer.print_string_literal(self.bound_by.data)
            printer.print_string(", plan ")
            printer.print_string_literal(self.plan.data)
            printer.print_string(", engine ")
            printer.print_string_literal(self.engine.data)
            printer.print_string(f", seed {self.seed.data}")
            if self.limits.given():
                printer.print_string(", within ")
                self.limits.print_parameters(printer)

    def verify(self) -> None:
        check_integers(
            pattern=(self.pattern, 1),
            microbatches=(self.microbatches, 1),
            bound=(self.bound, 0),
            seed=(self.seed, -(2**63)),
        )
        if self.step.data not in (0, 1):
            raise VerifyException(f"'step' is 0 or 1, got {self.step.data}")
