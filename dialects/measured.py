"""Measured times of collectives: data of a platform that stands in the place of a formula."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Self

from xdsl.dialects.builtin import IntAttr, StringAttr, i64
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from dialects.attributes import MOST_ACCELERATORS, BracketedAttribute, Ints, ints, parse_integer, values

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")
"""What the accelerators of a set do together."""


@irdl_attr_definition
class MeasuredAttr(BracketedAttribute):
    """Times of a collective among so many neighbouring accelerators: bytes of the whole tensor, and ns for each.

    ```
    #takt.measured<all_reduce on 8 [65536, 1048576] time [30000, 55000]>
    ```
    """

    name = "takt.measured"

    pattern: StringAttr
    accelerators: IntAttr
    sizes: Ints
    times: Ints

    @staticmethod
    def make(pattern: str, accelerators: int, table: Mapping[int, int]) -> MeasuredAttr:
        """From a table of bytes and ns."""
        sizes = sorted(table)
        return MeasuredAttr(StringAttr(pattern), IntAttr(accelerators), ints(sizes), ints([table[s] for s in sizes]))

    @property
    def key(self) -> tuple[str, int]:
        """The pattern and the number of accelerators: no platform has two tables of one key."""
        return self.pattern.data, self.accelerators.data

    def points(self) -> tuple[tuple[int, int], ...]:
        """Pairs of bytes and ns, by increasing bytes."""
        return tuple(zip(values(self.sizes), values(self.times), strict=True))

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        def column() -> Ints:
            return ints(parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: parse_integer(parser)))

        pattern = StringAttr(parser.parse_identifier(" as the name of a collective"))
        parser.parse_keyword("on")
        accelerators = IntAttr(parse_integer(parser))
        sizes = column()
        parser.parse_keyword("time")
        return cls(pattern, accelerators, sizes, column())

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(f"{self.pattern.data} on {self.accelerators.data} ")
            printer.print_string(f"{list(values(self.sizes))} time {list(values(self.times))}")

    def verify(self) -> None:
        if self.pattern.data not in COLLECTIVES:
            raise VerifyException(f"collectives are {', '.join(COLLECTIVES)}, got '{self.pattern.data}'")
        if not 2 <= self.accelerators.data <= MOST_ACCELERATORS:
            raise VerifyException(f"a collective takes 2 to {MOST_ACCELERATORS} accelerators")
        if self.sizes.elt_type != i64 or self.times.elt_type != i64:
            raise VerifyException("measured sizes and times are lists of i64")
        sizes, times = values(self.sizes), values(self.times)
        if len(sizes) != len(times) or len(sizes) < 2:
            raise VerifyException(f"a measured table has two sizes or more, and a time for each, got {list(sizes)}")
        if sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)) or min(times) < 0:
            raise VerifyException("measured sizes are positive and increase, and times are not negative")
