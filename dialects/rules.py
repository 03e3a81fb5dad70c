"""What a rule of a level is, and what all rules of a module share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from itertools import islice
from sys import maxsize
from typing import Any, TypeVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from dialects.diagnostics import Diagnostic, at
from dialects.network import Network
from dialects.operators import OperatorOp, operator_names
from dialects.placement import MOST_COPIES, Placement
from dialects.structure import GraphOp, PlatformOp, StageOp, find_graph, find_platform

_Made = TypeVar("_Made")

MOST_REPORTED = 20
"""Broken places reported per rule; a broken pass breaks a rule everywhere at once."""


@dataclass(frozen=True)
class Finding:
    """A place where a rule is broken: the operation and what is wrong there."""

    op: Operation
    message: str
    hint: str | None = None


class Subject:
    """A module under inspection, with what several rules need computed once.

    The rules above ``well-formed`` may assume one graph, and nothing else: where a property is
    missing, the rule that demands it reports so and all others pass over the operator.
    """

    def __init__(self, module: ModuleOp):
        self.module = module

    @cached_property
    def graph(self) -> GraphOp:
        graph = find_graph(self.module)
        assert graph is not None, "the rule 'one-graph' comes first"
        return graph

    @cached_property
    def platform(self) -> PlatformOp | None:
        return find_platform(self.module)

    @cached_property
    def operators(self) -> tuple[OperatorOp, ...]:
        return tuple(self.graph.operators())

    @cached_property
    def names(self) -> Mapping[OperatorOp, str]:
        return operator_names(self.operators)

    @cached_property
    def positions(self) -> Mapping[Operation, int]:
        """Place of each operation of the graph in program order."""
        return {op: i for i, op in enumerate(self.graph.body.block.ops)}

    @cached_property
    def groups(self) -> Mapping[str, tuple[OperatorOp, ...]]:
        """The operators that share parameters, in program order, by the name of their group."""
        found: dict[str, list[OperatorOp]] = {}
        for op in self.operators:
            if op.group is not None:
                found.setdefault(op.group.data, []).append(op)
        return {name: tuple(members) for name, members in found.items()}

    @cached_property
    def stages(self) -> Mapping[int, StageOp]:
        """Stage by index; the first where an index is repeated."""
        found: dict[int, StageOp] = {}
        for stage in self.graph.stages():
            found.setdefault(stage.index.value.data, stage)
        return found

    @cached_property
    def blocks(self) -> Mapping[int, frozenset[int]]:
        """Granted accelerators by stage index."""
        return {i: frozenset(stage.accelerators()) for i, stage in self.stages.items()}

    @cached_property
    def placement(self) -> Placement:
        """The schedule as numbers, read once for all rules of level 4."""
        return Placement(self.graph, self.names)

    @cached_property
    def network(self) -> Network:
        """The links of the platform; none where there is no platform."""
        return Network(()) if self.platform is None else Network.of(self.platform)

    @cached_property
    def _unions(self) -> dict[tuple[int, int | None], frozenset[int]]:
        return {}

    @cached_property
    def _made(self) -> dict[Callable[[Subject], Any], Any]:
        return {}

    def once(self, make: Callable[[Subject], _Made]) -> _Made:
        """What ``make`` returns for this module, computed the first time a rule asks for it."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def home(self, op: OperatorOp) -> frozenset[int] | None:
        """Accelerators an operator may use: its stage's block, with the other's when shared; None without a stage."""
        if op.stage is None:
            return None
        key = (op.stage.value.data, None if op.shared is None else op.shared.value.data)
        if key not in self._unions:
            own = self.blocks.get(key[0])
            if own is None:
                return None
            other: frozenset[int] = frozenset() if key[1] is None else self.blocks.get(key[1], frozenset())
            self._unions[key] = own | other
        return self._unions[key]


@dataclass(frozen=True)
class Rule:
    """One sentence that must hold at a level, and the function that finds where it does not."""

    name: str
    statement: str
    check: Callable[[Subject], Iterator[Finding]]

    def diagnostics(self, subject: Subject) -> list[tuple[int, Diagnostic]]:
        """What is broken, at most :data:`MOST_REPORTED` places, each with its position in program order."""
        found: list[tuple[int, Diagnostic]] = []
        places = self.check(subject)
        for finding in islice(places, MOST_REPORTED):
            found.append(
                (self._position(subject, finding.op), at(finding.op, finding.message, finding.hint, self.name))
            )
        if next(places, None) is not None:
            more = Diagnostic(
                f"more than {MOST_REPORTED} places break the rule '{self.name}'; the others are not shown",
                severity="note",
                rule=self.name,
            )
            found.append((maxsize, more))
        return found

    @staticmethod
    def _position(subject: Subject, op: Operation) -> int:
        # Only operations inside the graph have a position; the module, platform and graph come first.
        parent = op.parent_op()
        if not isinstance(parent, GraphOp) or parent is not subject.graph:
            return -1
        return subject.positions[op]


def timed(check: Callable[[Placement, Subject], Iterator[Finding]]) -> Callable[[Subject], Iterator[Finding]]:
    """Run a rule that needs a period, starts for it, and copies few enough to unroll, only when there are."""

    @wraps(check)
    def guarded(subject: Subject) -> Iterator[Finding]:
        placement = subject.placement
        if placement.period and placement.listed and placement.turns <= MOST_COPIES:
            yield from check(placement, subject)

    return guarded
