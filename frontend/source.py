"""Source texts and places in them."""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dialects.diagnostics import Diagnostic, Location, TaktError

LIBRARY_PREFIX = "takt/"
"""Imports that start so name a file of the library shipped with the front end."""

MAX_BYTES = 16 * 1024 * 1024
"""The longest source file; anything larger is not a model description."""


@dataclass(frozen=True)
class Source:
    """A text and the name it goes by in messages."""

    name: str
    text: str = field(repr=False)

    @staticmethod
    def read(path: str | Path, shown: str | None = None, asked_at: Location | None = None) -> Source:
        """Read a file; ``-`` is standard input.

        ``shown`` is the name for messages (default: the path as given) and ``asked_at`` the place that
        asked for it. Raises TaktError when it cannot be read or is not UTF-8 text.
        """
        name = shown or ("<stdin>" if str(path) == "-" else str(path))
        try:
            if str(path) == "-":
                data = sys.stdin.buffer.read(MAX_BYTES + 1)
            else:
                with open(path, "rb") as file:
                    data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            hint = _nearby(Path(path)) if isinstance(error, FileNotFoundError) else None
            raise TaktError(Diagnostic(f"cannot read '{name}': {reason}", asked_at, hint)) from None
        if len(data) > MAX_BYTES:
            raise TaktError(Diagnostic(f"'{name}' is longer than {MAX_BYTES // 2**20} MiB", asked_at))
        try:
            return Source(name, data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            good = data[: error.start].decode("utf-8-sig", errors="replace")
            place = Source(name, good + "?").location(Span(len(good), len(good) + 1))
            byte = data[error.start]
            message = f"not UTF-8 text: byte 0x{byte:02x}"
            raise TaktError(Diagnostic(message, place, "a takt file is plain text in UTF-8")) from None

    @cached_property
    def _line_starts(self) -> list[int]:
        starts = [0]
        position = self.text.find("\n")
        while position >= 0:
            starts.append(position + 1)
            position = self.text.find("\n", position + 1)
        return starts

    def location(self, span: Span) -> Location:
        """The place of ``span``; its caret ends with the first line."""
        line = bisect_right(self._line_starts, span.start)
        start = self._line_starts[line - 1]
        newline = self.text.find("\n", span.start)
        stop = min(span.end, newline if newline >= 0 else len(self.text))
        return Location(self.name, line, span.start - start + 1, max(1, stop - span.start))

    def here(self, start: int, end: int) -> Place:
        """The place between two character offsets."""
        return Place(self, start, end)


@dataclass(frozen=True, slots=True)
class Span:
    """Character offsets ``[start, end)``."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Place:
    """A span of a source text."""

    source: Source
    start: int
    end: int

    def location(self) -> Location:
        """Line, column and caret length."""
        return self.source.location(Span(self.start, self.end))


def library_file(name: str) -> Path:
    """Where the library file ``takt/<file>`` is installed."""
    return Path(__file__).parent / "lib" / name.removeprefix(LIBRARY_PREFIX)


def find_source(name: str) -> Source | None:
    """The text behind ``Location.file``: a library file or a file on disk; None when it cannot be read."""
    try:
        if name.startswith(LIBRARY_PREFIX) and library_file(name).is_file():
            return Source.read(library_file(name), name)
        return Source.read(name) if os.path.isfile(name) else None
    except (TaktError, ValueError):
        return None


def _nearby(path: Path) -> str | None:
    """A file beside ``path`` with nearly its name."""
    from difflib import get_close_matches

    try:
        names = [p.name for p in path.parent.iterdir() if p.is_file()][:1000]
    except OSError:
        return None
    close = get_close_matches(path.name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else None
