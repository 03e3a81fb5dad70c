"""What every part of takt says when the input is wrong.

A :class:`Diagnostic` is plain data: a message, a place in a file, a hint. The front end,
the passes and the level verifiers all produce it; only ``compiler/diagnostics.py`` prints it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from xdsl.dialects.builtin import FileLineColLoc
from xdsl.ir import Operation

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Location:
    """A place in a source file. ``line`` and ``column`` count from 1; ``length`` is the width of the caret."""

    file: str
    line: int
    column: int
    length: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Diagnostic:
    """One message for the user, with the place it is about and what to change."""

    message: str
    location: Location | None = None
    hint: str | None = None
    severity: Severity = "error"
    notes: tuple[Diagnostic, ...] = field(default=())
    rule: str | None = None
    """Name of the level rule that was broken, if one was."""


class TaktError(Exception):
    """The input cannot be compiled; holds every independent diagnostic found."""

    def __init__(self, diagnostics: Sequence[Diagnostic] | Diagnostic | str):
        if isinstance(diagnostics, str):
            diagnostics = Diagnostic(diagnostics)
        if isinstance(diagnostics, Diagnostic):
            diagnostics = (diagnostics,)
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)
        super().__init__("; ".join(d.message for d in self.diagnostics))


def location_of(op: Operation) -> Location | None:
    """The source location recorded on ``op``, or None when it has none."""
    if isinstance(op.location, FileLineColLoc):
        loc = op.location
        return Location(loc.filename.data, loc.line.data, loc.column.data)
    return None


def at(op: Operation, message: str, hint: str | None = None, rule: str | None = None) -> Diagnostic:
    """A diagnostic about ``op``, at its source location."""
    return Diagnostic(message, location_of(op), hint, rule=rule)
