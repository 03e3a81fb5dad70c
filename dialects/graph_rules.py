"""The rules of levels 0, 2 and 3: the graph, its costs, its stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, OpResult
from xdsl.utils.exceptions import DiagnosticException

from dialects.attributes import show_set
from dialects.communication import MoveOp, TransferOp
from dialects.gradients import OptimizerStepOp, WeightGradientOp
from dialects.operators import OpaqueOp, OperatorOp
from dialects.placement import update_name
from dialects.programs import ProgramOp
from dialects.rules import Finding, Rule, Subject
from dialects.structure import GraphOp, InputOp, NextOp, OutputOp, PlatformOp, StageOp, StateOp

# --- level 0: the graph ----------------------------------------------------------------------


def _well_formed(subject: Subject) -> Iterator[Finding]:
    """xDSL's own verification, one operation at a time so that every broken one is named."""
    for op in subject.module.walk():
        try:
            op.verify(verify_nested_ops=False)
        except (DiagnosticException, ValueError) as error:
            yield Finding(op, _first_line(op, str(error)))


def _first_line(op: Operation, message: str) -> str:
    # xDSL appends the whole printed operation to some messages; the place is reported apart.
    text = message.strip().splitlines()
    line = text[0] if text else "does not verify"
    return line if op.name in line or isinstance(op, ModuleOp) else f"{op.name}: {line}"


def _one_graph(subject: Subject) -> Iterator[Finding]:
    graphs = platforms = 0
    for op in subject.module.body.ops:
        graphs += isinstance(op, GraphOp)
        platforms += isinstance(op, PlatformOp)
        if not isinstance(op, GraphOp | PlatformOp | ProgramOp):
            yield Finding(op, f"a module holds a takt.graph, a takt.platform and programs only, got {_kind(op)}")
        elif isinstance(op, GraphOp) and graphs > 1:
            yield Finding(op, "a module holds one takt.graph, this is another")
        elif isinstance(op, PlatformOp) and platforms > 1:
            yield Finding(op, "a module holds one takt.platform, this is another")
    if not graphs:
        yield Finding(subject.module, "the module holds no takt.graph")


def _kind(op: Operation) -> str:
    name = getattr(op, "op_name", None)  # the name an unregistered operation came with
    return name.data if name is not None else op.name


def _graph_body(subject: Subject) -> Iterator[Finding]:
    block = subject.graph.body.block
    if block.args:
        yield Finding(subject.graph, "the block of a graph has no arguments; inputs are takt.input operations")
    for op in block.ops:
        if not isinstance(op, OperatorOp | InputOp | StateOp | NextOp | StageOp | MoveOp | OutputOp):
            yield Finding(op, f"a graph holds inputs, states, stages, operators and an output only, got {_kind(op)}")
    if not subject.operators:
        yield Finding(subject.graph, "the graph has no operator")


def _dominance(subject: Subject) -> Iterator[Finding]:
    for op, position in subject.positions.items():
        for number, operand in enumerate(op.operands):
            name = operand.name_hint or f"operand {number}"
            owner = operand.op if isinstance(operand, OpResult) else None
            if owner is None or owner.parent_op() is not subject.graph:
                yield Finding(op, f"{_user(subject, op)} uses '{name}', which is defined outside the graph")
            elif subject.positions[owner] >= position:
                yield Finding(op, f"{_user(subject, op)} uses '{name}' before it is defined")


def _user(subject: Subject, op: Operation) -> str:
    return f"'{subject.names[op]}'" if isinstance(op, OperatorOp) and op in subject.names else op.name


def _state_unique(subject: Subject) -> Iterator[Finding]:
    seen: set[str] = set()
    for state in subject.graph.states():
        if state.state.data in seen:
            yield Finding(state, f"state '{state.state.data}' is declared twice")
        seen.add(state.state.data)


def _state_left_once(subject: Subject) -> Iterator[Finding]:
    left: dict[str, NextOp] = {}
    declared = {state.state.data for state in subject.graph.states()}
    for op in subject.graph.nexts():
        name = op.state.data
        if name not in declared:
            yield Finding(op, f"there is no state '{name}' to leave a value in")
        elif name in left:
            yield Finding(op, f"state '{name}' is left two values")
        left.setdefault(name, op)
    for state in subject.graph.states():
        if state.state.data not in left:
            yield Finding(state, f"state '{state.state.data}' is never left a value")


def _state_type(subject: Subject) -> Iterator[Finding]:
    types = {state.state.data: state.output.type for state in subject.graph.states()}
    for op in subject.graph.nexts():
        expected = types.get(op.state.data)
        if expected is not None and op.left.type != expected:
            shown = f"{expected}, but a {op.left.type}"
            yield Finding(op, f"state '{op.state.data}' holds a {shown} is left in it")


def _state_computed(subject: Subject) -> Iterator[Finding]:
    for op in subject.graph.nexts():
        if not isinstance(op.left.owner, OperatorOp | TransferOp):
            name = op.left.name_hint or "a value"
            yield Finding(op, f"'{name}' is left in state '{op.state.data}', but no operator computes it")


def _state_readers(subject: Subject) -> Iterator[Finding]:
    for state in subject.graph.states():
        for use in state.output.uses:
            if isinstance(use.operation, OutputOp):
                yield Finding(use.operation, f"state '{state.state.data}' is an output, but no operator computes it")


def _optimizer_gradients(subject: Subject) -> Iterator[Finding]:
    first: dict[str, OptimizerStepOp] = {}
    for op in subject.graph.updates():
        name = f"'{update_name(op)}'"
        if op.group is None:
            yield Finding(op, f"{name} is of no group: there are no parameters for it")
            continue
        group = op.group.data
        if first.setdefault(group, op) is not op:
            yield Finding(op, f"{name} is the second optimizer step of group '{group}'")
        gradients = [value.owner for value in op.inputs]
        for value, gradient in zip(op.inputs, gradients, strict=True):
            if not isinstance(gradient, WeightGradientOp):
                yield Finding(op, f"{name} reads '{value.name_hint or 'a value'}', which is no gradient of weights")
        if isinstance(gradients[0], WeightGradientOp) and gradients[0].group != op.group:
            what = subject.names[gradients[0]]
            yield Finding(op, f"{name} reads '{what}' first, which is not of its group '{group}'")
        for member in subject.groups.get(group, ()):
            if isinstance(member, WeightGradientOp) and member not in gradients:
                yield Finding(op, f"{name} does not read '{subject.names[member]}' of its group '{group}'")
        for use in op.results[0].uses:
            if not isinstance(use.operation, OutputOp):
                yield Finding(use.operation, f"{_user(subject, use.operation)} reads what {name} gives once a step")
    training = subject.graph.training
    if training is None or training.optimizer.data == "none":
        return
    for op in subject.operators:
        if isinstance(op, WeightGradientOp) and (op.group is None or op.group.data not in first):
            yield Finding(op, f"no optimizer step reads '{subject.names[op]}': its parameters would never change")


def _opaque_table(subject: Subject) -> Iterator[Finding]:
    for op in subject.operators:
        if isinstance(op, OpaqueOp) and op.cost is None:
            yield Finding(op, f"'{subject.names[op]}' is opaque and has no table of times")


# --- level 2: costs --------------------------------------------------------------------------


def _platform_present(subject: Subject) -> Iterator[Finding]:
    if subject.platform is None:
        yield Finding(subject.module, "the module holds no takt.platform", "give one with --platform")


def _cost_present(subject: Subject) -> Iterator[Finding]:
    for op in subject.operators:
        if op.cost is None:
            yield Finding(op, f"'{subject.names[op]}' has no cost table")


def _allotments_fit(subject: Subject) -> Iterator[Finding]:
    if subject.platform is None:
        return
    count = subject.platform.count
    for op in subject.operators:
        if op.cost is not None and (most := max(op.cost.table())) > count:
            yield Finding(op, f"'{subject.names[op]}' has a cost for {most} accelerators, but the platform has {count}")


def _group_allotment(subject: Subject) -> Iterator[Finding]:
    for group, members in subject.groups.items():
        common: set[int] | None = None
        for op in members:
            if op.cost is None:
                continue
            own = set(op.cost.table())
            rest = own if common is None else common & own
            if not rest:
                yield Finding(
                    op,
                    f"'{subject.names[op]}' has costs for {_listed(own)} accelerators, but the operators before it in "
                    f"group '{group}' for {_listed(common or ())} only",
                    "operators that share parameters run on the same accelerators",
                )
                break
            common = rest


def _listed(allotments: Iterable[int]) -> str:
    return ", ".join(str(k) for k in sorted(allotments))


# --- level 3: stages -------------------------------------------------------------------------


def _stages_first(subject: Subject) -> Iterator[Finding]:
    last_other: Operation | None = None
    for op in subject.graph.body.block.ops:
        if not isinstance(op, StageOp):
            last_other = op
        elif last_other is not None:
            yield Finding(op, f"stage {op.index.value.data} stands after {last_other.name}; stages come first")


def _stages_numbered(subject: Subject) -> Iterator[Finding]:
    count = 0
    for expected, stage in enumerate(subject.graph.stages()):
        count += 1
        if stage.index.value.data != expected:
            yield Finding(
                stage, f"stages are numbered from 0 in order: expected {expected}, got {stage.index.value.data}"
            )
    if not count:
        yield Finding(subject.graph, "the graph has no stage")


def _blocks_inside(subject: Subject) -> Iterator[Finding]:
    if subject.platform is None:
        return
    count = subject.platform.count
    for index, block in subject.blocks.items():
        if max(block) >= count:
            yield Finding(
                subject.stages[index],
                f"stage {index} is granted {show_set(sorted(block))}, but the platform has {count} accelerators",
            )


def _blocks_disjoint(subject: Subject) -> Iterator[Finding]:
    owner: dict[int, int] = {}
    seen: dict[frozenset[int], int] = {}
    for index, block in subject.blocks.items():
        if block in seen:
            continue
        seen[block] = index
        others = sorted({owner[p] for p in block if p in owner})
        for p in block:
            owner.setdefault(p, index)
        for other in others:
            both = sorted(block & subject.blocks[other])
            yield Finding(
                subject.stages[index],
                f"the blocks of stages {other} and {index} share accelerators {show_set(both)} but differ: "
                f"{show_set(sorted(subject.blocks[other]))} and {show_set(sorted(block))}",
            )


def _blocks_grouped(subject: Subject) -> Iterator[Finding]:
    if subject.platform is None:
        return
    size = subject.platform.group_size
    for index, block in subject.blocks.items():
        if len(block) <= size and min(block) // size != max(block) // size:
            yield Finding(
                subject.stages[index],
                f"the block {show_set(sorted(block))} of stage {index} fits in one group of {size} accelerators "
                f"but spreads over groups {min(block) // size} and {max(block) // size}",
                "its collectives were priced on the links inside a group",
            )


def _stage_present(subject: Subject) -> Iterator[Finding]:
    for op in subject.operators:
        if op.stage is None:
            yield Finding(op, f"'{subject.names[op]}' has no stage")
        elif op.stage.value.data not in subject.stages:
            yield Finding(op, f"'{subject.names[op]}' is in stage {op.stage.value.data}, which does not exist")


def _shared_neighbour(subject: Subject) -> Iterator[Finding]:
    for op in subject.operators:
        if op.shared is None:
            continue
        other = op.shared.value.data
        if op.stage is None:
            yield Finding(op, f"'{subject.names[op]}' is shared with stage {other} but has no stage of its own")
        elif abs(op.stage.value.data - other) != 1:
            yield Finding(
                op, f"'{subject.names[op]}' of stage {op.stage.value.data} is shared with stage {other}, no neighbour"
            )
        elif other not in subject.stages:
            yield Finding(op, f"'{subject.names[op]}' is shared with stage {other}, which does not exist")


def _stages_convex(subject: Subject) -> Iterator[Finding]:
    """One pass in program order; a bit mask per operator holds the stages that some path to it has left."""
    bits = {index: 1 << place for place, index in enumerate(subject.stages)}
    left: dict[OperatorOp, int] = {}
    for op in subject.operators:
        own = _stage_bit(op, bits)
        mask = 0
        for producer in _producers(op):
            mask |= left[producer]
            bit = _stage_bit(producer, bits)
            if bit != own:
                mask |= bit
        if mask & own:
            yield Finding(op, _detour(subject, op, left, bits))
            mask &= ~own
        left[op] = mask


def _stage_bit(op: OperatorOp, bits: Mapping[int, int]) -> int:
    return 0 if op.stage is None else bits.get(op.stage.value.data, 0)


def _producers(op: OperatorOp) -> list[OperatorOp]:
    return list(dict.fromkeys(v.op for v in op.inputs if isinstance(v, OpResult) and isinstance(v.op, OperatorOp)))


def _detour(subject: Subject, op: OperatorOp, left: Mapping[OperatorOp, int], bits: Mapping[int, int]) -> str:
    """Name the ends of a path that leaves the stage of ``op`` and comes back to it in ``op``."""
    assert op.stage is not None
    own = _stage_bit(op, bits)
    # Backwards along operators that remember a path out of the stage, to the one right after it.
    step = last = next(p for p in _producers(op) if left[p] & own)
    while (first := next((p for p in _producers(step) if _stage_bit(p, bits) == own), None)) is None:
        step = next(p for p in _producers(step) if left[p] & own)
    other = "no stage" if last.stage is None else f"stage {last.stage.value.data}"
    return (
        f"a path leaves stage {op.stage.value.data} after '{subject.names[first]}' and comes back in "
        f"'{subject.names[op]}', through '{subject.names[last]}' of {other}"
    )


def _allotment_exists(subject: Subject) -> Iterator[Finding]:
    for op in subject.operators:
        home = subject.home(op)
        if op.cost is None or home is None:
            continue
        least = min(op.cost.table())
        if least > len(home):
            yield Finding(
                op,
                f"'{subject.names[op]}' needs at least {least} accelerators, but its stage is granted "
                f"{len(home)}: {show_set(sorted(home))}",
            )


def _group_block(subject: Subject) -> Iterator[Finding]:
    for group, members in subject.groups.items():
        homes = [home for op in members if (home := subject.home(op)) is not None]
        tables = [op.cost.table().keys() for op in members if op.cost is not None]
        if len(homes) < len(members) or len(tables) < len(members):
            continue
        usable = frozenset[int].intersection(*homes)
        common = set(tables[0]).intersection(*tables[1:])
        if common and min(common) > len(usable):
            yield Finding(
                members[0],
                f"the operators of group '{group}' need at least {min(common)} accelerators together, but all of them "
                f"may use only {len(usable)}{f': {show_set(sorted(usable))}' if usable else ''}",
                "put them in one stage, or in stages of one block",
            )


# --- nothing from a later level --------------------------------------------------------------


def leftovers(level: int) -> Rule:
    """The rule ``nothing-later`` of level 0, 2, 3, 4 or 5."""
    order = {"sharded": 2, "stage": 3, "shared": 3, "slot": 4}
    early = [name for name, first in order.items() if first > level]

    def check(subject: Subject) -> Iterator[Finding]:
        if level < 4 and subject.graph.schedule is not None:
            yield Finding(subject.graph, "the graph has a schedule already")
        if level < 3:
            for stage in subject.graph.stages():
                yield Finding(stage, "the graph has stages already")
        for op in subject.module.body.ops:
            if isinstance(op, ProgramOp):
                yield Finding(op, f"accelerator {op.accelerator.value.data} has a program already")
        for op in subject.operators:
            for name in early:
                if name in op.properties:
                    yield Finding(op, f"'{subject.names[op]}' has a '{name}' already")
        for update in subject.graph.updates():
            if "slot" in early and update.slot is not None:
                yield Finding(update, f"'{update_name(update)}' has a 'slot' already")
        for op in subject.graph.transfers():
            if level < 4 or (level < 5 and isinstance(op, TransferOp)):
                yield Finding(op, f"the graph has a transfer already: {op.name}")

    return Rule(
        "nothing-later", "Nothing is present that only a later level has (checked at the level claimed).", check
    )


STRUCTURE_RULES = (
    Rule("well-formed", "Every operation verifies: types, shapes, arguments, attributes.", _well_formed),
    Rule(
        "one-graph",
        "A module holds one takt.graph, at most one takt.platform, programs of accelerators, and nothing else.",
        _one_graph,
    ),
)
"""What must hold before anything else can be looked at."""

BODY_RULES = (
    Rule(
        "graph-body",
        "A graph holds inputs, states and what is left in them, stages, at least one operator, transfers and its "
        "output, and nothing else.",
        _graph_body,
    ),
    Rule("dominance", "Every operand is defined in the same graph, before its use.", _dominance),
    Rule("state-unique", "No two states have one name.", _state_unique),
    Rule("state-left-once", "Every state is left one value a micro-batch, and only states are.", _state_left_once),
    Rule("state-type", "What is left in a state has the type of the state.", _state_type),
    Rule("state-computed", "What is left in a state is the result of an operator.", _state_computed),
    Rule("state-readers", "A state is read by operators, and is no output of the graph.", _state_readers),
)
"""What the rules of all levels take for granted about a graph."""

MODEL_RULES = (
    Rule("opaque-table", "Every opaque operator has a table of times.", _opaque_table),
    Rule(
        "optimizer-gradients",
        "Every optimizer step has a group, and is the only one of it; it reads results of weight gradients, all those "
        "of its group and one of them first, and nothing but the output of the graph reads what it gives. With an "
        "optimizer, all weight gradients are read.",
        _optimizer_gradients,
    ),
)

MOLDABLE_RULES = (
    Rule("platform-present", "The module has a platform.", _platform_present),
    Rule("cost-present", "Every operator has a cost table.", _cost_present),
    Rule("allotments-fit", "No allotment exceeds the number of accelerators.", _allotments_fit),
    Rule("group-allotment", "The operators of a group have an allotment in common.", _group_allotment),
)

STAGED_RULES = (
    Rule("stages-first", "Stages stand at the head of the graph.", _stages_first),
    Rule("stages-numbered", "There is at least one stage; stages are numbered 0, 1, ... in order.", _stages_numbered),
    Rule("blocks-inside", "Every granted block lies inside the platform.", _blocks_inside),
    Rule("blocks-disjoint", "The granted blocks of two stages are equal or disjoint.", _blocks_disjoint),
    Rule(
        "blocks-grouped",
        "A granted block no wider than the innermost group of the platform lies inside one group.",
        _blocks_grouped,
    ),
    Rule("stage-present", "Every operator has a stage that exists.", _stage_present),
    Rule("shared-neighbour", "An operator is shared only with the stage before or after its own.", _shared_neighbour),
    Rule("stages-convex", "No path of the graph leaves a stage and comes back to it.", _stages_convex),
    Rule(
        "allotment-exists",
        "Every operator has an admissible allotment no wider than the block it may use.",
        _allotment_exists,
    ),
    Rule(
        "group-block",
        "The operators of a group have a common allotment no wider than the accelerators that all of them may use.",
        _group_block,
    ),
)
