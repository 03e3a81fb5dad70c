"""The cells of a rank, spelled as phases: what it does over and over in each, by kind and chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

from passes.scheduling.steps.cells import Cell, Kind

Phase = tuple[int, str]
"""How often, and what: ``"F0 I1 W1"`` is a forward of chunk 0, then both halves of a backward of chunk 1."""


def spelled(stages: Sequence[int], microbatches: int, phases: Iterable[Phase]) -> list[Cell]:
    """The cells of a rank whose chunks are ``stages``.

    Cells of one kind and chunk come in the order of micro-batches, starting from 0; a ``W`` without a chunk is that of
    the oldest ``I`` that still lacks it. Phases may be those of a longer batch: cells of micro-batches that the batch
    does not have are left out, and what is left still never waits in a circle.
    """
    cells: list[Cell] = []
    done: Counter[str] = Counter()
    lacking: list[Cell] = []
    for times, pattern in phases:
        words = pattern.split()
        for _ in range(times):
            for word in words:
                cell = _weights(word, stages, lacking) if word[0] == "W" else _next(word, stages, done)
                if cell.kind == "I":
                    lacking.append(cell)
                cells.append(cell)
    return [cell for cell in cells if cell.microbatch < microbatches]


def _next(word: str, stages: Sequence[int], done: Counter[str]) -> Cell:
    """The next forward or backward of a chunk: ``I`` and ``B`` are counted together."""
    kind, chunk = cast(Kind, word[0]), int(word[1:])
    counted = f"{'F' if kind == 'F' else 'B'}{chunk}"
    done[counted] += 1
    return Cell(kind, stages[chunk], done[counted] - 1)


def _weights(word: str, stages: Sequence[int], lacking: list[Cell]) -> Cell:
    """The oldest gradient of weights that is missing, of the chunk if one is named."""
    oldest = next(c for c in lacking if len(word) == 1 or c.stage == stages[int(word[1:])])
    lacking.remove(oldest)
    return Cell("W", oldest.stage, oldest.microbatch)
