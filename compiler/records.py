"""The parts of a scheduled module as plain data: platform, stages, operators, values, transfers.

:mod:`compiler.view` reads them from the IR and puts them together. Times are integer nanoseconds, sizes integer bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from dialects.network import Link, Network

Accelerators = tuple[int, ...]


LinkView = Link
"""A level of the network."""


@dataclass(frozen=True)
class PlatformView:
    """The machine: ``memory`` is bytes on each accelerator, ``group`` the size of the innermost group.

    ``links`` are the levels of its network, innermost first, and ``transfers`` what a transfer keeps accelerators from
    doing (``overlapped``: nothing; ``blocking``: both ends stand still; ``buffered``: each end while it copies).
    """

    name: str
    accelerator: str
    accelerators: int
    memory: int
    group: int
    links: tuple[LinkView, ...] = ()
    transfers: str = "overlapped"

    @cached_property
    def network(self) -> Network:
        """What transfers take and occupy."""
        return Network(self.links, self.transfers)


@dataclass(frozen=True)
class StageView:
    """A pipeline stage and the accelerators granted to it."""

    index: int
    granted: Accelerators


@dataclass(frozen=True)
class Task:
    """One operator with its slot. ``copies`` holds one sorted accelerator set per copy.

    ``params``, ``output`` and ``workspace`` are bytes on each accelerator of a set at the chosen allotment; ``results``
    are the full bytes of each result; ``times`` is the whole cost table, as pairs of allotment and time.
    """

    index: int
    name: str
    kind: str
    stage: int | None
    block: tuple[str, int] | None
    allotment: int
    copies: tuple[Accelerators, ...]
    start: int
    time: int
    params: int
    output: int
    workspace: int
    results: tuple[int, ...]
    times: tuple[tuple[int, int], ...]
    group: str | None = None
    """Tasks of one group share their parameters."""
    sharded: tuple[int, ...] = ()
    """Numbers of the results of which each accelerator of a set holds its share only."""
    later: tuple[int, ...] = ()
    """In a step, the starts of micro-batches 1, 2, ..."""
    version: int = 0
    """Bytes of one more version of its parameters, where they are trained asynchronously."""

    @property
    def end(self) -> int:
        """When micro-batch 0 leaves the operator."""
        return self.start + self.time

    @property
    def starts(self) -> tuple[int, ...]:
        """The starts of all micro-batches of a step; that of micro-batch 0 where the others follow by the period."""
        return (self.start, *self.later)

    def set_of(self, microbatch: int) -> Accelerators:
        """The accelerators that run micro-batch ``microbatch``."""
        return self.copies[microbatch % len(self.copies)]

    def bytes_on(self, place: Accelerators, results: Iterable[int]) -> int:
        """Bytes of these results on each accelerator of a set that received them."""
        return sum(-(-self.results[r] // len(place)) if r in self.sharded else self.results[r] for r in results)


@dataclass(frozen=True)
class Edge:
    """``consumer`` reads the results numbered ``results`` of ``producer``: ``size`` bytes, each result counted once.

    Micro-batch ``i + distance`` of the consumer reads micro-batch ``i`` of the producer.
    """

    producer: int
    consumer: int
    results: tuple[int, ...]
    size: int
    distance: int = 0


@dataclass(frozen=True)
class Move:
    """Result ``result`` of task ``producer``, of ``size`` bytes, on its way to a set of accelerators that reads it.

    Micro-batch ``i`` leaves in ``[start + iT, start + time + iT)`` and arrives for as long from ``landing`` on, which
    is the same moment unless a buffer lies between. With ``sharded`` each accelerator holds its share only.
    """

    index: int
    producer: int
    result: int
    targets: tuple[Accelerators, ...]
    link: str
    start: int
    time: int
    landing: int
    size: int
    sharded: bool
    later: tuple[int, ...] = ()
    """In a step, the starts of micro-batches 1, 2, ..."""
    later_landings: tuple[int, ...] = ()

    @property
    def ready(self) -> int:
        """When micro-batch 0 has arrived."""
        return self.landing + self.time

    @property
    def starts(self) -> tuple[int, ...]:
        """As :attr:`Task.starts`."""
        return (self.start, *self.later)

    @property
    def landings(self) -> tuple[int, ...]:
        """As many starts of the arrivals."""
        return (self.landing, *self.later_landings)

    def target_of(self, microbatch: int) -> Accelerators:
        """The accelerators that receive micro-batch ``microbatch`` of the producer."""
        return self.targets[microbatch % len(self.targets)]


@dataclass(frozen=True)
class Update:
    """The step of the optimizer for the parameters of ``group``, once for all micro-batches of a step.

    It starts when the weight gradients ``gradients`` (numbers of tasks) of the step are complete, those of copies on
    other accelerators behind its own. ``start`` is None in a schedule that is no step, where nothing says when it runs.
    ``times`` is its whole cost table; ``time``, which counts the exchange with these copies too, and ``workspace`` are
    those on ``place``.
    """

    index: int
    name: str
    group: str
    gradients: tuple[int, ...]
    place: Accelerators
    start: int | None
    time: int
    workspace: int
    times: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class InputView:
    """A value that arrives with every micro-batch."""

    name: str
    size: int
    consumers: tuple[int, ...]


@dataclass(frozen=True)
class OutputView:
    """A value that leaves: result ``result`` of task ``producer``; an input passed through has no producer."""

    name: str
    producer: int | None
    result: int
    size: int
