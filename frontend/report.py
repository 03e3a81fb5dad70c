"""Collecting diagnostics while the front end goes on after an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from dialects.diagnostics import Diagnostic, Location, TaktError
from frontend.source import Place

MAX_ERRORS = 20
"""Errors reported in one run."""


class Reporter:
    """Gathers diagnostics, one for each place: a repeated block reports its mistake once."""

    def __init__(self) -> None:
        self._found: dict[Location | None, Diagnostic] = {}
        self._unplaced: list[Diagnostic] = []

    @property
    def failed(self) -> bool:
        """Whether anything was reported."""
        return bool(self._found or self._unplaced)

    def error(
        self, place: Place | None, message: str, hint: str | None = None, notes: Sequence[Diagnostic] = ()
    ) -> None:
        """Record an error; raises TaktError when there are too many to go on."""
        self.add(Diagnostic(message, place.location() if place else None, hint, notes=tuple(notes)))

    def add(self, diagnostic: Diagnostic) -> None:
        """Record a diagnostic; raises TaktError when there are too many to go on."""
        if diagnostic.location is None:
            self._unplaced.append(diagnostic)
        elif diagnostic.location in self._found:
            return
        else:
            self._found[diagnostic.location] = diagnostic
        if len(self._found) + len(self._unplaced) >= MAX_ERRORS:
            self._unplaced.append(Diagnostic(f"too many errors: stopped after {MAX_ERRORS}", severity="note"))
            raise self.failure()

    def failure(self) -> TaktError:
        """Everything found, in the order of the text."""

        def order(diagnostic: Diagnostic) -> tuple[str, int, int]:
            place = diagnostic.location
            return (place.file, place.line, place.column) if place else ("", 0, 0)

        return TaktError([*sorted(self._found.values(), key=order), *self._unplaced])

    def raise_if_failed(self) -> None:
        """End the run when anything was reported."""
        if self.failed:
            raise self.failure()


def note(place: Place, message: str) -> Diagnostic:
    """A note that goes with an error."""
    return Diagnostic(message, place.location(), severity="note")


def suggest(name: str, known: Iterable[str]) -> str | None:
    """``did you mean 'x'?`` for the nearest known name, if one is near."""
    names = sorted(set(known))
    if swapped := [n for n in names if n != name and sorted(n) == sorted(name)]:
        return f"did you mean '{swapped[0]}'?"
    close = get_close_matches(name, names, n=1) or get_close_matches(name.lower(), names, n=1)
    return f"did you mean '{close[0]}'?" if close else None


def choices(name: str, known: Iterable[str], what: str) -> str | None:
    """A suggestion, or else the short list of what there is."""
    names = sorted(set(known))
    if hint := suggest(name, names):
        return hint
    if 0 < len(names) <= 8:
        return f"{what}: " + ", ".join(names)
    return None
