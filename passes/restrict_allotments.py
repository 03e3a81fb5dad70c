"""Leave every operator one number of accelerators that it may run on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from dialects.attributes import CostAttr
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.operators import OperatorOp, operator_names
from dialects.structure import GraphOp, find_graph

LEVELS = ("moldable", "staged")
"""The levels at which allotments are open."""


def check_costs(graph: GraphOp) -> None:
    """Raise TaktError unless every operator has a cost table and no schedule."""
    if graph.level.data not in LEVELS:
        message = f"this pass takes a graph at level {' or '.join(LEVELS)}, this one is at level '{graph.level.data}'"
        raise TaktError(at(graph, message, "run it between annotate-costs and schedule-periodic"))
    without = [op for op in graph.operators() if op.cost is None]
    if without:
        raise TaktError([at(op, f"'{op.kind()}' has no cost table", "run annotate-costs first") for op in without])


def missing(graph: GraphOp, allotment: int) -> list[Diagnostic]:
    """What is wrong with ``allotment``: for all operators with equal allotments at the first of them."""
    names = operator_names(graph)
    first: dict[tuple[int, ...], OperatorOp] = {}
    for op in graph.operators():
        assert op.cost is not None
        first.setdefault(tuple(op.cost.table()), op)
    common = set[int].intersection(*map(set, first)) if first else set[int]()
    hint = "no number suits all operators; with --allotments stage, stages differ in width"
    if common:
        hint = f"all operators can run on {_listed(common)}"
    return [
        at(op, f"'{names[op]}' ({op.kind()}) cannot run on {allotment} accelerators, only on {_listed(table)}", hint)
        for table, op in first.items()
        if allotment not in table
    ]


def _listed(numbers: Iterable[int]) -> str:
    *most, last = map(str, sorted(numbers))
    return f"{', '.join(most)} or {last}" if most else last


@dataclass(frozen=True)
class RestrictAllotmentsPass(ModulePass):
    """Keep one allotment in every cost table: level moldable or staged, which stays.

    For runtimes that know meshes of one size only. What follows sees operators that are not moldable: every
    schedule runs all of them on so many accelerators, and the lower bound is that of such schedules.
    An operator that has no time for that number is an error.

    options:
      to: the number of accelerators that every operator runs on

    rewrite (to=2):
      %a = takt.op(...) cost <[1, 2, 4] time [8000, 5000, 3000] ...>   ->   %a = takt.op(...) cost <[2] time [5000] ...>
    """

    name = "restrict-allotments"

    to: int

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        graph = find_graph(op)
        if graph is None:
            raise TaktError("there is no model: the module has no takt.graph")
        check_costs(graph)
        trouble = missing(graph, self.to)
        if trouble:
            raise TaktError(trouble)
        restricted: dict[CostAttr, CostAttr] = {}
        for operator in (*graph.operators(), *graph.updates()):
            if operator.cost is None or self.to not in operator.cost.table():  # of an update, which no operator reads
                continue
            if operator.cost not in restricted:
                entry = operator.cost.table()[self.to]
                restricted[operator.cost] = CostAttr.from_table({self.to: entry})
            operator.cost = restricted[operator.cost]
            for name in ("backward_times", "weights_times"):  # of the whole table, and of no use to a moldable graph
                operator.properties.pop(name, None)
