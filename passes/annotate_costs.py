"""Give every operator a moldable cost table from the platform's cost model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, cast

from xdsl.context import Context
from xdsl.dialects.builtin import AnyFloatConstr, ModuleOp, StringAttr
from xdsl.passes import ModulePass

from dialects.attributes import CostAttr, CostEntry, ints
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.gradients import GradientOp, WeightGradientOp
from dialects.nn.base import LARGEST
from dialects.operators import OperatorOp, Tensor, element_bytes, operator_names
from dialects.structure import GraphOp, PlatformOp, find_graph, find_platform
from dialects.updates import gradients
from passes.costs.layout import Placed, place
from passes.costs.machine import Machine, MissingRateError
from passes.costs.reading import Reader, read_machine
from passes.costs.table import candidates, cost_table
from passes.costs.updates import held_whole, update_ns
from passes.training.held import Held

Table = Mapping[int, CostEntry]


def _find(module: ModuleOp) -> tuple[GraphOp, PlatformOp]:
    """The graph at level "model" and the platform, or a polite refusal."""
    graph, platform = find_graph(module), find_platform(module)
    if graph is None:
        raise TaktError(Diagnostic("there is no takt.graph to annotate", hint="compile a model file to level 'model'"))
    if graph.level.data != "model":
        message = f"graph @{graph.sym_name.data} is at level '{graph.level.data}', but annotate-costs needs 'model'"
        raise TaktError(at(graph, message, "run it once, right after the front end"))
    if platform is None:
        message = f"the costs of graph @{graph.sym_name.data} depend on a platform, and the module has none"
        raise TaktError(at(graph, message, "give one with --platform or define one in the model file"))
    return graph, platform


def _check_written(op: OperatorOp, name: str, cost: CostAttr, platform: PlatformOp) -> Diagnostic | None:
    """A complaint when a written table reaches beyond the platform."""
    most = max(cost.table())
    if most <= platform.count:
        return None
    return at(
        op,
        f"'{name}' has a written time on {most} accelerators, but platform @{platform.sym_name.data} "
        f"has {platform.count}",
        f"leave out the times beyond {platform.count}, or compile for a larger platform",
    )


class _Annotator:
    """Prices the operators of one graph for one platform; equal operators once."""

    def __init__(self, machine: Machine, allotments: list[int]):
        self._price = cache(lambda placed: self._table(machine, placed, allotments))

    def price(self, placed: Placed) -> CostAttr:
        return self._price(placed)

    @staticmethod
    def _table(machine: Machine, placed: Placed, allotments: list[int]) -> CostAttr:
        rows = cost_table(machine, placed, allotments)
        return CostAttr.from_table({k: CostEntry(r.time, r.params, r.output, r.workspace) for k, r in rows.items()})


def _missing_rate(op: OperatorOp, name: str, dtype: str, platform: PlatformOp) -> Diagnostic:
    known = ", ".join(sorted(platform.peak_rates())) or "none"
    return at(
        op,
        f"'{name}' ({op.kind()}) multiplies {dtype} numbers, but accelerator '{platform.accelerator.data}' "
        f"states no peak rate for {dtype} (it has: {known})",
        f"add 'peak {dtype} = ...' to the accelerator, give the operator a written table of times, "
        "or use another element type",
    )


def annotate(graph: GraphOp, platform: PlatformOp, limit: int, every: bool, sequence: bool = False) -> None:
    """Set ``cost`` on every operator of ``graph``; raises TaktError with one diagnostic for each kind of trouble."""
    names = operator_names(graph)
    machine = read_machine(platform)
    annotator = _Annotator(machine, candidates(machine, limit, every))
    trouble: list[Diagnostic] = []
    dtypes: set[str] = set()
    # What is left in a state is whole, as an output is: its readers of a later micro-batch do not decide its layout.
    kept = [*graph.outputs.operands, *(op.left for op in graph.nexts())]
    for op, placed in zip(graph.operators(), place(Reader(sequence).nodes(graph), kept), strict=True):
        split = [number for number, dim in enumerate(placed.leaving) if dim is not None]
        if split:
            op.sharded = ints(split)
        if op.cost is not None:
            complaint = _check_written(op, names[op], op.cost, platform)
            trouble += [complaint] if complaint else []
            continue
        try:
            op.cost = annotator.price(placed)
        except MissingRateError as error:
            if error.dtype not in dtypes:  # the first operator stands for all of its element type
                trouble.append(_missing_rate(op, names[op], error.dtype, platform))
            dtypes.add(error.dtype)
    if trouble:
        raise TaktError(trouble)
    if graph.training is not None:
        held = Held(graph.training.optimizer.data, graph.training.precision.data == "mixed")
        price_updates(graph, machine, held)
        hold(graph, held, graph.training.asynchronous.data > 0)


def price_updates(graph: GraphOp, machine: Machine, held: Held) -> None:
    """Set ``cost`` on the optimizer's steps: on as many accelerators as the operators whose parameters they update.

    Of a group with several operators, which store the parameters once, the most that one of them holds counts.
    The gradients of copies elsewhere are read too; to bring them here takes what the place of the copies says.
    """
    owners: dict[StringAttr | None, list[OperatorOp]] = {}
    for op in graph.operators():
        if op.params.value.data and not isinstance(op, GradientOp):
            owners.setdefault(op.group, []).append(op)
    known: dict[tuple[object, ...], CostAttr] = {}
    for step in graph.updates():
        if step.group not in owners:
            name = step.outputs[0].name_hint or step.kind()
            raise TaktError(at(step, f"'{name}' updates parameters of a group in which no operator has any"))
        members = {(op.cost, op.params.value.data, parameter_bytes(op)): None for op in owners[step.group]}
        others = sum(gradient.group != step.group for gradient in gradients(step))
        key = (others, *members)
        if key not in known:
            tables = [(cost.table(), params, width) for cost, params, width in members if cost is not None]
            common = set[int].intersection(*(set(table) for table, _, _ in tables)) or set(tables[0][0])
            times = {k: _update(machine, held, tables, others, k) for k in sorted(common)}
            known[key] = CostAttr.from_table({k: CostEntry(time, 0, 0, 0) for k, time in times.items()})
        step.cost = known[key]


def _update(machine: Machine, held: Held, tables: Sequence[tuple[Table, int, int]], others: int, k: int) -> int:
    """Time of an optimizer's step on k accelerators; cost table, bytes and bytes of one parameter of each operator."""
    own = [(table[k].params, params, width) for table, params, width in tables if k in table]
    moved = max(held.moved(each, width) + others * each for each, _, width in own)
    return update_ns(machine, moved, max(held_whole(params, each, k) for each, params, _ in own), k)


def hold(graph: GraphOp, held: Held, versions: bool) -> None:
    """Count gradients and what the optimizer keeps with the parameters of the forward operators.

    Where there are ``versions`` of parameters, their own bytes are written too, as those of one more of them.
    Parameters that no loss depends on have neither: no `weight_gradient` is in their group.
    """
    priced = cache(lambda cost, width: _holding(cost, held, width, versions))
    names = operator_names(graph)
    trained = {op.group for op in graph.operators() if isinstance(op, WeightGradientOp)}
    for op in graph.operators():
        if op.params.value.data and op.group in trained and not isinstance(op, GradientOp):
            width = parameter_bytes(op)
            if op.cost is not None and max(held.bytes(c.params, width) for c in op.cost.table().values()) > LARGEST:
                message = f"the parameters of '{names[op]}' and what lies beside them have 2^63 bytes or more"
                raise TaktError(at(op, message, "split the operator, or train it with an optimizer that keeps less"))
            op.cost = priced(op.cost, width)


def parameter_bytes(op: OperatorOp) -> int:
    """Bytes of one parameter: of an element of the result, or 16 bits where that is not known to be a number."""
    element = cast(Tensor, op.outputs[0].type).element_type
    return element_bytes(element) if AnyFloatConstr.verifies(element) else 2


def _holding(cost: CostAttr, held: Held, width: int, versions: bool) -> CostAttr:
    table = cost.table().items()
    version = {k: c.params if versions else 0 for k, c in table}
    return CostAttr.from_table(
        {k: replace(c, params=held.bytes(c.params, width), version=version[k]) for k, c in table}
    )


@dataclass(frozen=True)
class AnnotateCostsPass(ModulePass):
    """Give every operator a moldable cost table: level "model" to level "moldable".

    For each allotment k that divides the operator's heads, columns, rows, experts or channels:
    time = launch + max(computing, moving) + collectives, in ns, and the bytes of parameters, results
    and workspace on each of the k accelerators. The constants are those of the module's
    takt.platform; the formulas are in docs/costs.md. Times need not fall as k grows. A table written
    in the model is kept as it is. A result of which each of the k holds its share only, as all of
    its consumers want it, is listed by its number after ``sharded``. In a training graph the bytes of parameters
    include their gradients and what the optimizer keeps, and the optimizer's steps have a table too.

    ```
    %y = takt.linear(%x) {features = 4096} params 8388608 : ...
    ->
    %y = takt.linear(%x) {features = 4096} params 8388608
           cost <[1, 2] time [812000, 430000] params [8388608, 4194304] output [1048576, 524288]> sharded [0] : ...
    ```
    """

    name = "annotate-costs"

    max_allotment: int = 64
    """Most accelerators an operator may use; 0 sets no limit but the platform's size."""

    allotments: Literal["divisors", "all"] = "divisors"
    """Which numbers of accelerators to consider. "divisors": those that divide the innermost group, and
    its multiples; all, on a platform of one group. "all": every number up to the limit."""

    sequence: bool = False
    """Sequence parallelism: what lies between two products that are split, such as norms and residual sums, is split
    by rows of the sequence. A product split by rows of its weight reduce-scatters, one split by columns all-gathers."""

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        graph, platform = _find(op)
        if self.max_allotment < 0:
            raise TaktError(Diagnostic(f"max-allotment must be 0 or more, got {self.max_allotment}"))
        annotate(graph, platform, self.max_allotment or platform.count, self.allotments == "all", self.sequence)
        graph.level = StringAttr("moldable")
