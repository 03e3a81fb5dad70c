"""What a chunk holds of a micro-batch on the first accelerator of its block, which is in every set of its rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from passes.scheduling.crossings import share
from passes.scheduling.steps.batch import Batch
from passes.scheduling.steps.cells import Kind

Members = tuple[int, ...]


class Held:
    """Bytes of values between the cells of chunks, and inside of them. ``chunks`` and ``sets`` are of operations.

    A value is of the first chunk that has it: of its producer's, or, where it arrives, of its readers'.
    """

    def __init__(self, batch: Batch, chunks: Sequence[int], sets: Sequence[Members]):
        self.batch, self.chunks, self.sets = batch, chunks, sets
        count = max(chunks) + 1
        self.activation, self.kept = [0] * count, [0] * count
        self.values: dict[tuple[bool, int], list[tuple[int, list[int], int]]] = {}
        """By pass (whether forward) and chunk: producer, or -1 where it arrives; readers, and bytes."""
        for v in range(len(sets)):
            for producer, chunk, readers, size in self._results(v):
                self._add(batch.kinds[v], producer, chunk, readers, size)
        for value in batch.problem.inputs:
            by_set: dict[Members, list[int]] = {}
            for c in value.consumers:
                by_set.setdefault(sets[c], []).append(c)
            for readers in by_set.values():
                self._add("F", -1, chunks[readers[0]], readers, value.bytes)

    def of(self, chunk: int) -> tuple[int, int]:
        """Bytes from ``F`` on, and those that ``I`` leaves for ``W``."""
        return self.activation[chunk], self.kept[chunk]

    def _results(self, v: int) -> Iterator[tuple[int, int, list[int], int]]:
        """Where the results of an operation are: producer, chunk, readers, bytes."""
        mine, operation = self.sets[v], self.batch.problem.operations[v]
        here = [d.consumer for d in self.batch.readers[v] if self.sets[d.consumer] == mine]
        yield v, self.chunks[v], here, operation.table[len(mine)].output
        away: dict[tuple[int, Members], tuple[int, list[int]]] = {}
        for d in self.batch.readers[v]:
            there = self.sets[d.consumer]
            if there != mine:
                away.setdefault((d.result, there), (share(d, there), []))[1].append(d.consumer)
        for (_, there), (size, readers) in away.items():
            chunk = min(self.chunks[c] for c in readers)
            yield (v if there[0] == mine[0] and chunk == self.chunks[v] else -1), chunk, readers, size

    def _add(self, kind: Kind, producer: int, chunk: int, readers: list[int], size: int) -> None:
        """Count a value that is there from a cell of ``kind`` on until the last of its readers."""
        self.values.setdefault((kind == "F", chunk), []).append((producer, readers, size))
        kinds = {self.batch.kinds[c] for c in readers}
        if kind == "F" and kinds & {"I", "W"}:
            self.activation[chunk] += size
        if kind != "W" and "W" in kinds:
            self.kept[chunk] += size

    def inside(self, kind: Kind, chunk: int, operations: Sequence[int]) -> int:
        """The most bytes that a cell of these operations has at a time beside what is there before and after it."""
        if not operations:
            return 0
        place = {v: number for number, v in enumerate(operations)}
        changes = [0] * (len(operations) + 1)
        after = 0
        for producer, readers, size in self.values.get((kind == "F", chunk), ()):
            begin = 0 if producer < 0 else place.get(producer)
            mine = [place[c] for c in readers if c in place]
            if begin is None or (producer < 0 and (kind == "W" or not mine)):
                continue
            changes[begin] += size
            if len(mine) == len(readers):
                changes[max(mine, default=begin) + 1] -= size
            else:
                after += size
        level = most = 0
        for number, v in enumerate(operations):
            level += changes[number]
            most = max(most, level + self.batch.problem.operations[v].table[len(self.sets[v])].workspace)
        return max(0, most - after)
