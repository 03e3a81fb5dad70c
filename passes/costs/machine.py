"""The platform as plain numbers, and the time of one kernel on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NS_PER_S = 1_000_000_000

Topology = Literal["switch", "ring", "torus", "full"]

Points = tuple[tuple[int, int], ...]
"""Measured bytes and ns, by increasing bytes; two at least."""


class MissingRateError(Exception):
    """The platform states no peak rate for an element type that is multiplied."""

    def __init__(self, dtype: str):
        super().__init__(dtype)
        self.dtype = dtype


@dataclass(frozen=True)
class Link:
    """Groups of ``size`` accelerators; ``latency`` ns a collective, ``bandwidth`` bytes/s of one link in one direction.

    An accelerator has ``links`` links to a switch, or so many to each of its neighbours. ``shape`` holds the sides of
    a torus. With ``duplex`` both directions of a link run at once; where links are ``shared`` a transfer uses one.
    """

    group: str
    size: int
    latency: int
    bandwidth: int
    links: int = 1
    topology: Topology = "switch"
    shape: tuple[int, ...] = ()
    duplex: bool = True
    shared: bool = False

    @property
    def rate(self) -> int:
        """Bytes per second of one transfer in one direction, to the switch or to one neighbour."""
        return self.bandwidth if self.shared else self.bandwidth * self.links


@dataclass(frozen=True)
class Machine:
    """``bandwidth`` is memory bandwidth in bytes/s, ``launch`` is ns, ``peak`` FLOP/s by element type.

    The rate of a kernel of f floating-point operations is Hockney's r = r_inf * f / (f + f_half)
    (Hockney and Jesshope, Parallel Computers 2, 1988, section 1.3): ``compute_efficiency`` times
    the peak is r_inf, ``saturation`` is f_half.
    """

    accelerators: int
    bandwidth: int
    launch: int
    peak: Mapping[str, int]
    compute_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    saturation: int = 0
    links: tuple[Link, ...] = ()
    measured: Mapping[tuple[str, int], Points] = field(default_factory=dict[tuple[str, int], Points])
    """Measured times of collectives on a number of accelerators."""

    @property
    def group_size(self) -> int:
        """Size of the innermost group."""
        return min(self.links[0].size, self.accelerators) if self.links else self.accelerators

    def level(self, k: int) -> int | None:
        """Number of the level that k neighbouring accelerators span: the innermost whose groups are that large."""
        return next((number for number, link in enumerate(self.links) if link.size >= k), None)

    def link(self, k: int) -> Link | None:
        """That level itself."""
        number = self.level(k)
        return None if number is None else self.links[number]

    def inside(self, number: int) -> int:
        """Accelerators in each member of a level: in a group of the level inside it, else 1."""
        return self.links[number - 1].size if number else 1

    def compute_ns(self, flops: int, dtype: str) -> float:
        """Time of ``flops`` operations on elements of ``dtype``; raises :class:`MissingRateError`."""
        if flops == 0:
            return 0.0
        if dtype not in self.peak:
            raise MissingRateError(dtype)
        # flops / (peak * efficiency * flops / (flops + saturation)), without the division by flops
        return NS_PER_S * (flops + self.saturation) / (self.peak[dtype] * self.compute_efficiency)

    def memory_ns(self, moved: int) -> float:
        """Time to move ``moved`` bytes between memory and the chip."""
        return NS_PER_S * moved / (self.bandwidth * self.memory_efficiency)

    def kernel_ns(self, flops: int, dtype: str, moved: int) -> float:
        """Roofline with launch: computing and moving overlap (Williams, Waterman, Patterson, CACM 2009)."""
        return self.launch + max(self.compute_ns(flops, dtype), self.memory_ns(moved))
