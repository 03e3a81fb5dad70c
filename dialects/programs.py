"""Level 6: the program of an accelerator, a list of instructions for every section of a pipelined run.

An instruction is a row of eight integers in a dense array, so that a module with hundreds of thousands of them stays
small and quick. In text each stands on a line of its own, with the name of what it works on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, cast

from xdsl.dialects.builtin import ArrayAttr, BytesAttr, DenseArrayBase, IntegerAttr, StringAttr, i64
from xdsl.ir import Attribute
from xdsl.irdl import IRDLOperation, irdl_op_definition, opt_prop_def, prop_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from dialects.attributes import Ints, check_set, ints, members, parse_integer, show_set, values

KINDS = ("compute", "send", "recv", "copy", "all_gather", "free", "update")
"""Kinds of instructions; an instruction holds the place of its kind here."""

COMPUTE, SEND, RECV, COPY, ALL_GATHER, FREE, UPDATE = range(len(KINDS))

SECTIONS = ("prologue", "kernel", "epilogue")

Section = Literal["prologue", "kernel", "epilogue"]

if TYPE_CHECKING:  # numpy is imported where there are programs
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]
    """Instructions, one a row, columns as in :class:`Instruction`."""

    Mask = NDArray[np.bool_]


class Buffer(NamedTuple):
    """A value on an accelerator, of one micro-batch.

    ``subject`` is the number of the operator that computed it among the operators of the graph, or ``-1 - n`` of
    input ``n`` among its inputs; ``result`` the number of its result; ``destination`` 0 on the set that computed it,
    else the number of the transfer that brought it (``docs/ir.md`` says how destinations are numbered).
    """

    subject: int
    result: int
    destination: int


class Instruction(NamedTuple):
    """One row. Which fields a kind of instruction uses:

    ``compute`` runs operator ``subject``; ``send`` and ``recv`` move bytes ``[begin, end)`` of a value to and from
    accelerator ``peer``, ``copy`` within the accelerator; in ``all_gather`` the accelerators of group ``peer`` exchange
    their pieces until each holds ``[begin, end)``; ``free`` gives up one buffer; ``update`` is optimizer step
    ``subject`` of the graph, after micro-batch ``microbatch``, the last of a step. All others hold 0.
    """

    kind: int
    subject: int
    result: int
    destination: int
    microbatch: int
    """Prologue: the micro-batch. Kernel: beyond the first of the trip. Epilogue: before the last of all."""
    peer: int = 0
    begin: int = 0
    end: int = 0

    @property
    def buffer(self) -> Buffer:
        """What is received, freed, gathered or copied into; a send reads the buffer of destination 0."""
        return Buffer(self.subject, self.result, self.destination)


WIDTH = len(Instruction._fields)


def to_rows(array: Ints) -> Rows:
    """The instructions of a dense array, as a matrix."""
    import numpy as np

    return np.frombuffer(array.data.data, dtype="<i8").reshape(-1, WIDTH)


def from_rows(rows: Rows | Sequence[Sequence[int]]) -> Ints:
    """A dense array of instructions."""
    import numpy as np

    matrix = np.ascontiguousarray(np.asarray(rows, dtype="<i8").reshape(-1, WIDTH))
    return cast(Ints, DenseArrayBase(i64, BytesAttr(matrix.tobytes())))


def _subjects(sections: Sequence[Ints]) -> tuple[list[int], list[int]]:
    """What instructions of these sections are about, by number: operators and inputs; optimizer steps."""
    found: tuple[set[int], set[int]] = set(), set()
    for rows in map(to_rows, sections):
        updates: Mask = rows[:, 0] == UPDATE
        found[0].update(rows[~updates, 1].tolist())
        found[1].update(rows[updates, 1].tolist())
    return sorted(found[0]), sorted(found[1])


@irdl_op_definition
class ProgramOp(IRDLOperation):
    """What one accelerator does: a prologue, a kernel that is repeated, an epilogue.

    ``microbatches 3 + 2 * 4``: four trips of the kernel, which begins 2 micro-batches a trip, and 3 others, 11 in all;
    ``3 + 2 * any`` leaves the number of trips to whoever runs it. The first trip has ``i = 0``, the next ``i = 2``.

    ```
    takt.program 2 microbatches 3 + 1 * any {
      prologue {
        recv 0->1 h of 0 bytes [0:4096] from 0
        compute 1 y of 0
        free 0->1 h of 0
      }
      kernel {
        recv 0->1 h of i + 1 bytes [0:4096] from 0
        ...
    ```
    """

    name = "takt.program"

    accelerator = prop_def(IntegerAttr.constr(i64))
    base = prop_def(IntegerAttr.constr(i64))
    """Micro-batches begun in the prologue and the epilogue."""
    step = prop_def(IntegerAttr.constr(i64))
    """Micro-batches begun in a trip of the kernel."""
    trips = opt_prop_def(IntegerAttr.constr(i64))
    """Trips of the kernel; left out when there is no end to them."""
    prologue = prop_def(Ints)
    kernel = prop_def(Ints)
    epilogue = prop_def(Ints)
    groups = prop_def(ArrayAttr[Ints])
    """Accelerator sets of the collectives."""
    subjects = prop_def(Ints)
    """What the instructions are about, by number..."""
    names = prop_def(ArrayAttr[StringAttr])
    """...and its name in the graph when the program was made, for people."""
    updates = opt_prop_def(ArrayAttr[StringAttr])
    """Names of the optimizer steps that its instructions name, by number; left out when there are none."""

    @staticmethod
    def make(
        accelerator: int,
        base: int,
        step: int,
        trips: int | None,
        sections: Sequence[Rows | Sequence[Sequence[int]]],
        groups: Sequence[Sequence[int]],
        names: Mapping[int, str],
        updates: Sequence[str] = (),
    ) -> ProgramOp:
        """Create a program; ``names`` of the subjects of its instructions, others may be among them.

        ``updates`` are the names of all optimizer steps of the graph.
        """
        rows = [from_rows(section) for section in sections]
        used, updated = _subjects(rows)
        properties: dict[str, Attribute] = {
            "accelerator": IntegerAttr(accelerator, i64),
            "base": IntegerAttr(base, i64),
            "step": IntegerAttr(step, i64),
            **dict(zip(SECTIONS, rows, strict=True)),
            "groups": ArrayAttr([ints(sorted(group)) for group in groups]),
            "subjects": ints(used),
            "names": ArrayAttr([StringAttr(names[n]) for n in used]),
        }
        if trips is not None:
            properties["trips"] = IntegerAttr(trips, i64)
        if updated:
            properties["updates"] = ArrayAttr([StringAttr(updates[n]) for n in updated])
        return ProgramOp.create(properties=properties)

    def rows(self, section: str) -> Rows:
        """The instructions of a section."""
        return to_rows(cast(Ints, self.properties[section]))

    def instructions(self, section: str) -> Iterator[Instruction]:
        """The instructions of a section, one by one."""
        return map(Instruction._make, self.rows(section).tolist())

    def name_of(self) -> dict[int, str]:
        """Subject → name."""
        return {n: name.data for n, name in zip(values(self.subjects), self.names.data, strict=True)}

    def update_names(self) -> dict[int, str]:
        """Optimizer step → name."""
        _, updated = _subjects([cast(Ints, self.properties[section]) for section in SECTIONS])
        return dict(zip(updated, (name.data for name in self.updates.data) if self.updates else (), strict=True))

    def verify_(self) -> None:
        for name in ("accelerator", "base", "step", "trips"):
            number = cast(IntegerAttr | None, self.properties.get(name))
            if number is not None and number.value.data < (name == "step"):
                raise VerifyException(f"'{name}' of a program must not be {number.value.data}")
        for group in self.groups.data:
            check_set(group)
        subjects = values(self.subjects)
        if len(subjects) != len(self.names.data) or any(a >= b for a, b in pairwise(subjects)):
            raise VerifyException("the subjects of a program increase, and each has a name")
        for name in (*self.names.data, *(() if self.updates is None else self.updates.data)):
            if not _NAME.fullmatch(name.data):
                raise VerifyException(f"'{name.data}' is no name for a line of a program")
        for section in SECTIONS:
            self._verify_rows(section)
        _, updated = _subjects([cast(Ints, self.properties[section]) for section in SECTIONS])
        if len(updated) != (0 if self.updates is None else len(self.updates.data)):
            raise VerifyException("every optimizer step of a program has a name")

    def _verify_rows(self, section: str) -> None:
        import numpy as np

        array = cast(Ints, self.properties[section])
        if array.elt_type != i64 or len(array.data.data) % (8 * WIDTH):
            raise VerifyException(f"the {section} of a program is a list of i64, {WIDTH} an instruction")
        rows = to_rows(array)
        columns: list[Rows] = [rows[:, column] for column in range(WIDTH)]
        kind, subject, result, destination, microbatch, peer, begin, end = columns
        paired: Mask = (kind == SEND) | (kind == RECV)
        bytewise: Mask = paired | (kind == COPY) | (kind == ALL_GATHER)
        grouped: Mask = (kind == ALL_GATHER) & (peer < len(self.groups.data))
        whole: Mask = (begin == 0) & (end == 0) & (peer == 0)
        rules: list[Mask] = [
            np.where(kind == UPDATE, subject >= 0, np.isin(subject, values(self.subjects))),
            (kind >= 0) & (kind < len(KINDS)),
            (result >= 0) & (microbatch >= 0) & (destination >= bytewise),
            np.where(bytewise, (begin >= 0) & (begin <= end) & (peer >= 0), whole),
            paired | grouped | (peer == 0),
            (subject >= 0) | ((kind == FREE) & (result == 0) & (destination == 0)),
            ((kind != COMPUTE) & (kind != UPDATE)) | ((result == 0) & (destination == 0)),
        ]
        fits: Mask = np.logical_and.reduce(rules)
        if not fits.all():
            wrong = int(np.flatnonzero(~fits)[0])
            raise VerifyException(f"instruction {wrong} of the {section} is none: {rows[wrong].tolist()}")

    # --- assembly ----------------------------------------------------------------------------

    def print(self, printer: Printer) -> None:
        trips = "any" if self.trips is None else str(self.trips.value.data)
        head = f"{self.base.value.data} + {self.step.value.data} * {trips}"
        printer.print_string(f" {self.accelerator.value.data} microbatches {head}")
        printer.print_op_attributes(self.attributes, print_keyword=True)
        printer.print_string(" {")
        with printer.indented():
            for section in SECTIONS:
                printer.print_string(f"\n{section} {{")
                with printer.indented():
                    # One string for all lines: printing them one by one takes longer than making them.
                    lines = ["", *self.lines(section)]
                    if len(lines) > 1:
                        printer.print_string("\n".join(lines))
                printer.print_string("\n}")
        printer.print_string("\n}")

    def lines(self, section: str) -> Iterator[str]:
        """The instructions of a section as text; neighbouring frees of one micro-batch share a line."""
        names, updates = self.name_of(), self.update_names()
        groups = [show_set(members(group)) for group in self.groups.data]
        moment = _MOMENTS[section]
        rows: list[list[int]] = self.rows(section).tolist()
        freed = ""
        for number, (kind, subject, result, destination, microbatch, peer, begin, end) in enumerate(rows):
            if kind == COMPUTE:
                yield f"compute {subject} {names[subject]} of {moment(microbatch)}"
                continue
            if kind == UPDATE:
                yield f"update {subject} {updates[subject]} after {moment(microbatch)}"
                continue
            buffer = f"{subject}" if subject >= 0 else f"in{-1 - subject}"
            if result:
                buffer += f":{result}"
            if destination:
                buffer += f"->{destination}"
            buffer += f" {names[subject]}"
            if kind == FREE:
                freed = f"{freed}, {buffer}" if freed else f"free {buffer}"
                after = rows[number + 1] if number + 1 < len(rows) else None
                if after is None or after[0] != FREE or after[4] != microbatch:
                    yield f"{freed} of {moment(microbatch)}"
                    freed = ""
                continue
            line = f"{KINDS[kind]} {buffer} of {moment(microbatch)} bytes [{begin}:{end}]"
            if kind == ALL_GATHER:
                yield f"{line} among {groups[peer]}"
            else:
                yield line if kind == COPY else f"{line} {'to' if kind == SEND else 'from'} {peer}"

    @classmethod
    def parse(cls, parser: Parser) -> ProgramOp:
        position = parser.pos
        properties: dict[str, Attribute] = {"accelerator": IntegerAttr(parse_integer(parser), i64)}
        parser.parse_keyword("microbatches")
        properties["base"] = IntegerAttr(parse_integer(parser), i64)
        parser.parse_punctuation("+")
        properties["step"] = IntegerAttr(parse_integer(parser), i64)
        parser.parse_punctuation("*")
        if parser.parse_optional_keyword("any") is None:
            properties["trips"] = IntegerAttr(parse_integer(parser), i64)
        attributes = parser.parse_optional_attr_dict_with_keyword()
        properties |= _Body(parser).parse()
        made = cls.create(properties=properties, attributes={} if attributes is None else attributes.data)
        try:
            made.verify_()
        except VerifyException as error:
            parser.raise_error(str(error), position, parser.pos)
        return made


def _in_kernel(microbatch: int) -> str:
    return f"i + {microbatch}" if microbatch else "i"


def _in_epilogue(microbatch: int) -> str:
    return f"last - {microbatch}" if microbatch else "last"


_MOMENTS: Mapping[str, Any] = {"prologue": str, "kernel": _in_kernel, "epilogue": _in_epilogue}

_NAME = re.compile(r"[A-Za-z0-9_.$'-]+")

_BUFFER = r"(in)?(\d{1,9})(?::(\d{1,9}))?(?:->(\d{1,9}))? ([A-Za-z0-9_.$'-]+)"

_LINE = re.compile(
    rf"(compute|send|recv|copy|all_gather|free|update) ({_BUFFER}(?:, {_BUFFER})*)"
    r" (of|after) (?:(\d{1,18})|(i)(?: \+ (\d{1,18}))?|(last)(?: - (\d{1,18}))?)"
    r"(?: bytes \[(\d{1,18}):(\d{1,18})\])?(?: (to|from) (\d{1,9})| among (\[[0-9:, ]+\]))?"
)

_ONE_BUFFER = re.compile(_BUFFER)


class _Body:
    """Reads the three sections straight from the text, a line at a time: xDSL's lexer takes twenty times as long."""

    def __init__(self, parser: Parser):
        self.parser = parser
        self.text = parser.lexer.input.content
        self.groups: dict[tuple[int, ...], int] = {}
        self.names: dict[int, str] = {}
        self.updates: dict[int, str] = {}
        self.at = 0
        self.start = 0

    def parse(self) -> dict[str, Attribute]:
        """The properties that the body states; the parser goes on behind it."""
        token = self.parser._current_token  # pyright: ignore[reportPrivateUsage]
        if token.text != "{":
            self.parser.raise_error("expected the sections of a program in braces")
        self.at = token.span.end
        found: dict[str, Attribute] = {}
        if (rest := self.line()) != "":
            self.fail(f"expected a new line, got '{rest}'")
        for section in SECTIONS:
            if (line := self.filled()) != f"{section} {{":
                self.fail(f"expected '{section} {{'")
            rows: list[tuple[int, ...]] = []
            while (line := self.filled()) != "}":
                rows.extend(self.instructions(line, section))
            found[section] = from_rows(rows)
        if not (line := self.filled()).startswith("}"):
            self.fail("expected '}' at the end of a program")
        self.parser._resume_from(self.text.index("}", self.start) + 1)  # pyright: ignore[reportPrivateUsage]
        used = sorted(self.names)
        found["groups"] = ArrayAttr([ints(group) for group in self.groups])
        found["subjects"] = ints(used)
        found["names"] = ArrayAttr([StringAttr(self.names[n]) for n in used])
        if self.updates:
            found["updates"] = ArrayAttr([StringAttr(self.updates[n]) for n in sorted(self.updates)])
        return found

    def line(self) -> str:
        """The rest of a line, without blanks around it and without a comment."""
        end = self.text.find("\n", self.at)
        end = len(self.text) if end < 0 else end
        self.start, raw = self.at, self.text[self.at : end]
        self.at = end + 1
        return raw.partition("//")[0].strip()

    def filled(self) -> str:
        """The next line that says something."""
        while self.at < len(self.text):
            if line := self.line():
                return line
        self.start = len(self.text)
        self.fail("expected the end of a program")

    def fail(self, message: str) -> NoReturn:
        line = self.text[self.start : self.at].rstrip()
        start = self.start + len(line) - len(line.lstrip())
        self.parser.raise_error(message, start, max(start, self.start + len(line)))

    def instructions(self, line: str, section: str) -> Iterator[tuple[int, ...]]:
        """The instruction of a line; a free of several buffers is several."""
        match = _LINE.fullmatch(line)
        if match is None:
            self.fail(f"'{line}' is no instruction")
        when, absolute, trip, ahead, last, before, begin, end, way, peer, among = match.groups()[12:]
        if {"prologue": absolute, "kernel": trip, "epilogue": last}[section] is None:
            words = {"prologue": "a number", "kernel": "'i'", "epilogue": "'last'"}[section]
            self.fail(f"a micro-batch of the {section} starts with {words}")
        microbatch = int(absolute or ahead or before or 0)
        kind = KINDS.index(match[1])
        names = self.updates if kind == UPDATE else self.names
        buffers = [self.buffer(found, names) for found in _ONE_BUFFER.finditer(match[2])]
        wanted = {SEND: "to", RECV: "from"}.get(kind)
        if (
            way != wanted
            or (begin is not None) != (COMPUTE < kind < FREE)
            or (among is not None) != (kind == ALL_GATHER)
            or (when == "after") != (kind == UPDATE)
        ):
            self.fail(f"'{line}' does not say what a {match[1]} needs to")
        if len(buffers) > 1 and kind != FREE:
            self.fail(f"a {match[1]} is about one value")
        group = 0 if among is None else self.group(among)
        for buffer in buffers:
            yield (kind, *buffer, microbatch, int(peer or group), int(begin or 0), int(end or 0))

    def buffer(self, found: re.Match[str], names: dict[int, str]) -> Buffer:
        source, number, result, destination, name = found.groups()
        subject = -1 - int(number) if source else int(number)
        if names.setdefault(subject, name) != name:
            self.fail(f"'{name}' has another name before: '{names[subject]}'")
        return Buffer(subject, int(result or 0), int(destination or 0))

    def group(self, text: str) -> int:
        found: list[int] = []
        for part in text[1:-1].split(", "):
            low, _, high = part.partition(":")
            if not (low.isdigit() and high.isdigit()) or not int(low) < int(high) <= 2**20:
                self.fail(f"'{text}' is no set of accelerators")
            found.extend(range(int(low), int(high)))
        return self.groups.setdefault(tuple(found), len(self.groups))
