"""A console that writes into a text: what tables for people are printed with."""

from __future__ import annotations

import shutil
from io import StringIO

from rich.console import Console

WIDEST, NARROWEST = 130, 60


def text_console(stream: StringIO, width: int | None, colour: bool) -> Console:
    """A console on ``stream``, ``width`` columns wide (None: as the terminal), with terminal colours if asked for."""
    columns = shutil.get_terminal_size((100, 24)).columns if width is None else width
    return Console(
        file=stream,
        width=min(WIDEST, max(NARROWEST, columns)),
        force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
