"""Prints diagnostics: the place, the message, the source line with a caret, hints and notes.

Nothing else in takt prints errors; everything else produces :class:`dialects.diagnostics.Diagnostic`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from dialects.diagnostics import Diagnostic, Location

MAX_SHOWN = 20
"""Diagnostics printed in one run; the rest are only counted."""

MAX_WIDTH = 160
"""Columns of a source line shown around the caret."""

_COLOURS = {"error": "1;31", "warning": "1;35", "note": "1;36", "hint": "1;32", "place": "1", "caret": "1;32"}


class SourceCache:
    """The texts that diagnostics quote, by the file name that locations carry.

    Standard input and other texts without a file are added by the driver; files are read when first
    quoted (they may be missing: a dump can name the file it was made from on another machine).
    """

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, name: str, text: str) -> None:
        """Remember the text behind ``name``."""
        self._lines[name] = text.split("\n")

    def line(self, location: Location) -> str | None:
        """The source line of ``location``, without its line end; None when the text is not at hand."""
        if location.file not in self._lines:
            self.add(location.file, _read(location.file))
        lines = self._lines[location.file]
        return lines[location.line - 1].rstrip("\r") if 0 < location.line <= len(lines) else None


def _read(name: str) -> str:
    from frontend.source import find_source

    source = find_source(name)
    return source.text if source is not None else ""


def wants_colour(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that shows colours and the user has not refused them."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Renderer:
    """Turns diagnostics into text."""

    def __init__(self, sources: SourceCache, *, tool: str = "taktc", colour: bool = False) -> None:
        self.sources = sources
        self.tool = tool
        self.colour = colour

    def render_all(self, diagnostics: Sequence[Diagnostic]) -> str:
        """All diagnostics, the first :data:`MAX_SHOWN` in full, and how many there were when several."""
        parts = [self.render(diagnostic) for diagnostic in diagnostics[:MAX_SHOWN]]
        errors = sum(d.severity == "error" for d in diagnostics)
        if len(diagnostics) > MAX_SHOWN:
            parts.append(f"{self.tool}: {errors} errors, {len(diagnostics) - MAX_SHOWN} not shown\n")
        elif errors > 1:
            parts.append(f"{self.tool}: {errors} errors\n")
        return "".join(parts)

    def render(self, diagnostic: Diagnostic) -> str:
        """One diagnostic with its notes; ends with a newline."""
        place = str(diagnostic.location) if diagnostic.location is not None else self.tool
        severity = self._paint(f"{diagnostic.severity}:", diagnostic.severity)
        first, *rest = _printable(diagnostic.message, keep="\n").split("\n")
        lines = [f"{self._paint(_printable(place) + ':', 'place')} {severity} {first}", *(f"  {r}" for r in rest)]
        line = self.sources.line(diagnostic.location) if diagnostic.location is not None else None
        if diagnostic.location is not None and line is not None and line.strip():
            text, caret = excerpt(line, diagnostic.location.column, diagnostic.location.length)
            lines += [f"  {text}", f"  {self._paint(caret, 'caret')}"]
        if diagnostic.hint is not None:
            lines.append(f"  {self._paint('hint:', 'hint')} {_printable(diagnostic.hint)}")
        return "\n".join(lines) + "\n" + "".join(self.render(note) for note in diagnostic.notes)

    def _paint(self, text: str, what: str) -> str:
        return f"\x1b[{_COLOURS[what]}m{text}\x1b[0m" if self.colour else text


def excerpt(line: str, column: int, length: int) -> tuple[str, str]:
    """What to show of a source line, and the caret line below it.

    ``column`` counts characters from 1. Tabs stay tabs in both lines, wide characters get two carets,
    characters that would disturb a terminal are replaced, and a long line is cut around the caret.
    """
    start = min(max(column - 1, 0), len(line))
    end = min(max(start + length, start + 1), max(len(line), start + 1))
    line = _printable(line, keep="\t")
    left, prefix = 0, ""
    if end > MAX_WIDTH:
        left, prefix = max(0, start - MAX_WIDTH // 2), "..."
        prefix = prefix if left else ""
    shown = line[left : left + MAX_WIDTH]
    suffix = "..." if left + MAX_WIDTH < len(line) else ""
    end = min(end, max(left + len(shown), start + 1))
    space = "".join("\t" if c == "\t" else " " * _width(c) for c in line[left:start])
    carets = sum(_width(c) for c in line[start:end]) or 1
    return f"{prefix}{shown}{suffix}", f"{' ' * len(prefix)}{space}{'^' * carets}"


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _printable(text: str, keep: str = "") -> str:
    """``text`` with control characters and lone surrogates replaced, so that no input can steer the terminal."""
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or c == " " or unicodedata.category(c) not in ("Cc", "Cs", "Cf", "Zl", "Zp") else "\ufffd"
        for c in text
    )
