"""The levels of a network, as an attribute of the platform. Latencies are ns, rates bytes per second."""

from __future__ import annotations

from typing import Literal, Self, cast, get_args

from xdsl.dialects.builtin import IntAttr, StringAttr, i64
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from dialects.attributes import (
    BracketedAttribute,
    Ints,
    check_integers,
    ints,
    parse_integer,
    parse_ints,
    parse_text,
    print_ints,
    values,
)

Topology = Literal["switch", "ring", "torus", "full"]

TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)
"""How the members of a group are joined: through a switch, in a ring, in a torus, or each with each."""


@irdl_attr_definition
class LinkAttr(BracketedAttribute):
    """One level of the network: groups of ``size`` accelerators joined by links of this kind.

    ``bandwidth`` is bytes per second of one link in one direction, ``latency`` ns per message. An accelerator has
    ``links`` links (to a switch), or so many to each neighbour. ``shape`` holds the sides of a torus, in members: the
    accelerators of the innermost level, the groups inside an outer one. A half-duplex link carries one direction at a
    time. A transfer takes all links of its ends for itself, or, where they are shared, one of them.
    Levels go from the innermost group outwards; the last one spans the platform.

    ```
    #takt.link<"node" 8, latency 3000, bandwidth 300000000000>
    #takt.link<"board" 16, latency 1000, bandwidth 50000000000, links 2, torus [4, 4], half duplex, shared>
    ```
    """

    name = "takt.link"

    group: StringAttr
    size: IntAttr
    latency: IntAttr
    bandwidth: IntAttr
    links: IntAttr
    topology: StringAttr
    shape: Ints
    duplex: StringAttr
    sharing: StringAttr

    def __init__(
        self,
        group: StringAttr,
        size: IntAttr,
        latency: IntAttr,
        bandwidth: IntAttr,
        links: IntAttr | None = None,
        topology: StringAttr | None = None,
        shape: Ints | None = None,
        duplex: StringAttr | None = None,
        sharing: StringAttr | None = None,
    ) -> None:
        super().__init__(
            group,
            size,
            latency,
            bandwidth,
            links or IntAttr(1),
            topology or StringAttr("switch"),
            ints([]) if shape is None else shape,
            duplex or StringAttr("full"),
            sharing or StringAttr("exclusive"),
        )

    def plain(self) -> tuple[str, int, int, int, int, Topology, tuple[int, ...], bool, bool]:
        """The fields as plain values, in their order: whether it is full duplex, and whether it is shared, as flags."""
        return (
            self.group.data,
            self.size.data,
            self.latency.data,
            self.bandwidth.data,
            self.links.data,
            cast(Topology, self.topology.data),
            values(self.shape),
            self.duplex.data == "full",
            self.sharing.data == "shared",
        )

    @classmethod
    def parse_fields(cls, parser: AttrParser) -> Self:
        group = parse_text(parser)
        size = IntAttr(parse_integer(parser))
        numbers: list[IntAttr] = []
        for name in ("latency", "bandwidth"):
            parser.parse_punctuation(",")
            parser.parse_keyword(name)
            numbers.append(IntAttr(parse_integer(parser)))
        links, topology, shape, duplex, sharing = IntAttr(1), "switch", ints([]), "full", "exclusive"
        while parser.parse_optional_punctuation(",") is not None:
            position = parser.pos
            word = parser.parse_identifier(" as property of a link")
            if word == "links":
                links = IntAttr(parse_integer(parser))
            elif word in TOPOLOGIES:
                topology = word
                shape = parse_ints(parser) if word == "torus" else shape
            elif word == "half":
                parser.parse_keyword("duplex")
                duplex = word
            elif word == "shared":
                sharing = word
            else:
                known = ", ".join(("links", *TOPOLOGIES, "half duplex", "shared"))
                parser.raise_error(f"a link has no property '{word}' (it may have: {known})", position)
        latency, bandwidth = numbers
        kind, sides = StringAttr(topology), shape
        return cls(group, size, latency, bandwidth, links, kind, sides, StringAttr(duplex), StringAttr(sharing))

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string_literal(self.group.data)
            printer.print_string(f" {self.size.data}, latency {self.latency.data}, bandwidth {self.bandwidth.data}")
            if self.links.data != 1:
                printer.print_string(f", links {self.links.data}")
            if self.topology.data != "switch":
                printer.print_string(f", {self.topology.data}")
            if self.topology.data == "torus":
                printer.print_string(" ")
                print_ints(printer, self.shape)
            if self.duplex.data == "half":
                printer.print_string(", half duplex")
            if self.sharing.data == "shared":
                printer.print_string(", shared")

    def verify(self) -> None:
        check_integers(
            size=(self.size, 1), latency=(self.latency, 0), bandwidth=(self.bandwidth, 1), links=(self.links, 1)
        )
        if self.topology.data not in TOPOLOGIES:
            raise VerifyException(f"topologies are {', '.join(TOPOLOGIES)}, got '{self.topology.data}'")
        if self.duplex.data not in ("full", "half") or self.sharing.data not in ("exclusive", "shared"):
            raise VerifyException("a link is full or half duplex, and exclusive or shared")
        sides = values(self.shape)
        if self.shape.elt_type != i64 or any(side < 1 for side in sides):
            raise VerifyException(f"the sides of a torus are positive, got {list(sides)}")
        if bool(sides) != (self.topology.data == "torus"):
            raise VerifyException("a torus has sides, and nothing else has")
