"""Colours and texts of the pictures."""

from __future__ import annotations

from html import escape

from compiler.view import ScheduleView

PALETTE = ("#79b4ec", "#f7b267", "#86cf95", "#f095a5", "#b3a0ea", "#f0d35e", "#6fd0cd", "#d6b08c")
"""One colour a micro-batch, in turn; dark text is readable on each."""

INK, FAINT, RULE = "#1f2933", "#66727f", "#c4ccd4"
FONT = "Inter, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"


def text_at(x: float, y: float, text: str, *, size: float, anchor: str = "", colour: str = "", weight: str = "") -> str:
    """A text of that size in pixels, its baseline at ``y``."""
    extra = f' text-anchor="{anchor}"' if anchor else ""
    extra += f' fill="{colour}"' if colour else ""
    extra += f' font-weight="{weight}"' if weight else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.3g}"{extra} xml:space="preserve">{escape(text)}</text>'


def relative(microbatch: int) -> str:
    """A micro-batch seen from ``n``, the one that enters at 0: ``n``, ``n+1``."""
    return "n" if not microbatch else f"n{'+' if microbatch > 0 else '−'}{abs(microbatch)}"  # noqa: RUF001


def numbered(view: ScheduleView, microbatch: int) -> str:
    """A micro-batch: its number in a step, and :func:`relative` where there are no steps."""
    if not view.step:
        return relative(microbatch)
    lap, turn = divmod(microbatch, view.microbatches)
    return f"{turn} of the {'next' if lap > 0 else 'last'} step" if lap else str(turn)
