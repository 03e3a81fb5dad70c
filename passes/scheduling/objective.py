"""What users want of a schedule: an objective, limits on its other figures, and how two schedules compare.

No part of a problem: any solution has all figures, and users weigh them differently. A period alone is
easy to make small and useless then, so periods that differ little count as equal, and the schedule that
holds fewer micro-batches at once is preferred (lexicographic order with a tolerance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from passes.scheduling.data import Solution, Violation
from passes.scheduling.problem import MemoryProblem

MemoryKind = TypeVar("MemoryKind", bound=MemoryProblem)


@dataclass(frozen=True)
class Figures:
    """What a schedule costs: ns, ns, micro-batches, bytes on the fullest accelerator, bytes a micro-batch."""

    period: int
    latency: int
    in_flight: int
    memory: int
    crossing: int


def figures_of(problem: MemoryProblem, solution: Solution) -> Figures:
    """The figures of ``solution``."""
    memory = max((params + live for params, live in problem.peak_memory(solution).values()), default=0)
    latency, flying = problem.latency(solution), problem.in_flight(solution)
    return Figures(solution.period, latency, flying, memory, problem.crossing(solution))


@dataclass(frozen=True)
class Excess(Violation):
    """A limit that a schedule exceeds, with the value found and the most allowed, in the unit of the figure."""

    found: int = 0
    allowed: int = 0


@dataclass(frozen=True)
class Limits:
    """Most of each figure that a schedule may have; None: any. Units as in :class:`Figures`."""

    in_flight: int | None = None
    latency: int | None = None
    memory: int | None = None
    crossing: int | None = None

    def broken(self, found: Figures) -> Iterator[Excess]:
        """The limits that a schedule of these figures exceeds."""
        if self.in_flight is not None and found.in_flight > self.in_flight:
            message = f"{found.in_flight} micro-batches are in flight, more than the {self.in_flight} allowed"
            yield Excess("in-flight", message, found=found.in_flight, allowed=self.in_flight)
        if self.latency is not None and found.latency > self.latency:
            message = f"the latency is {found.latency} ns, more than the {self.latency} allowed"
            yield Excess("latency", message, found=found.latency, allowed=self.latency)
        if self.memory is not None and found.memory > self.memory:
            message = f"an accelerator holds {found.memory} bytes, more than the {self.memory} allowed"
            missing = found.memory - self.memory
            yield Excess("memory", message, (), missing, found.memory, self.memory)
        if self.crossing is not None and found.crossing > self.crossing:
            message = f"{found.crossing} bytes cross between accelerator sets, more than the {self.crossing} allowed"
            yield Excess("crossing", message, found=found.crossing, allowed=self.crossing)

    def keeps(self, found: Figures) -> bool:
        """Whether a schedule of these figures exceeds no limit."""
        return not any(self.broken(found))

    def bounded(self, problem: MemoryKind) -> MemoryKind:
        """``problem`` on accelerators that have no more memory than is allowed."""
        if self.memory is None or 0 < problem.memory <= self.memory:
            return problem
        return replace(problem, memory=self.memory)


Item = TypeVar("Item")


@dataclass(frozen=True)
class Objective:
    """What is made small: the period; the time of a step of ``microbatches``; or the latency of one."""

    kind: Literal["period", "step", "latency"] = "period"
    microbatches: int = 1
    tolerance: float = 0.005
    """Values within this fraction of the least count as equal."""

    @property
    def batch(self) -> int:
        """Micro-batches whose time together is made small; one where the latency of one is."""
        return self.microbatches if self.kind == "step" else 1

    def value(self, found: Figures) -> int:
        """Period, ``(m - 1)·period + latency``, or latency, in ns."""
        if self.kind == "period":
            return found.period
        if self.kind == "latency":
            return found.latency
        return (self.microbatches - 1) * found.period + found.latency

    def best(self, items: Iterable[Item], figures: Callable[[Item], Figures]) -> Item | None:
        """Of the items with about the least value the one with fewest in flight, then latency, bytes that cross."""
        known = [(figures(item), item) for item in items]
        if not known:
            return None
        least = min(self.value(found) for found, _ in known)

        def rank(pair: tuple[Figures, Item]) -> tuple[int, int, int, int]:
            found = pair[0]
            return (found.in_flight, found.latency, found.crossing, self.value(found))

        near = [pair for pair in known if self.value(pair[0]) <= least * (1 + self.tolerance)]
        return min(near, key=rank)[1]
