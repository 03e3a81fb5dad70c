"""From the syntax tree to the IR of level 0: blocks are expanded, repetitions unrolled, shapes inferred."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from xdsl.dialects.builtin import FileLineColLoc, IntAttr, StringAttr
from xdsl.ir import Operation, SSAValue

from dialects.attributes import BlockAttr
from dialects.operators import OperatorOp, Tensor, show
from dialects.structure import MOST_DISTANCE, GraphOp, InputOp, NextOp, OutputOp, StateOp
from frontend import ast
from frontend.binding import bind
from frontend.costs import written_cost, written_group
from frontend.evaluate import Poisoned, Problem, Value, describe, evaluate, is_number, whole
from frontend.operators import Operators
from frontend.program import OPERATOR_CLASSES, Unit
from frontend.report import Reporter, note
from frontend.scope import POISON, Constants, Entry, Poison, Scope
from frontend.source import Place
from frontend.types import Types
from frontend.units import Quantity

MAX_ITERATIONS = 100_000
"""Iterations of all repetitions of a model together."""

MAX_OPERATORS = 1_000_000
"""Operators and block calls of a model."""

MAX_DEPTH = 64
"""Blocks and repetitions open at once."""


@dataclass(frozen=True)
class Frame:
    """Where expansion stands: the block being expanded and the names it gives its values."""

    unit: Unit
    prefix: str = ""
    suffix: str = ""
    block: BlockAttr | None = None
    depth: int = 0
    calls: Mapping[str, int] = field(default_factory=dict[str, int])
    """How often the body calls each block, for naming."""
    caller: tuple[Place, str] | None = None
    """The outermost call that led here and the block it names."""


class Lowering:
    """Expands one model. Errors go to the reporter; what depends on them is poisoned and skipped."""

    def __init__(self, reporter: Reporter, constants: Constants, sizes: Mapping[int, int | None]):
        self.reporter = reporter
        self.accelerators: int | None = None
        """Size of the platform, when one is known."""
        self.overrides: Mapping[str, Value] = {}
        """Values of params that replace their defaults."""
        self._sizes = sizes
        """Identity of a block → the least number of steps one call takes; None: it calls itself, never expand it."""
        self.types = Types()
        self.operators = Operators(self.types)
        self.ops: list[Operation] = []
        self._constants = constants
        self._outputs: list[SSAValue] = []
        self._hints: set[str] = set()
        self._groups: dict[str, tuple[frozenset[int], Place]] = {}
        """Group → allotments that all its operators with written times have, and where the first of them is."""
        self._block_calls: dict[str, int] = {}
        self._call_counts: dict[int, Mapping[str, int]] = {}
        self._locations: dict[int, FileLineColLoc] = {}
        self.poisoned = False
        """Whether something was left out because of an error."""
        self._iterations = 0
        self._steps = 0

    def scope_of(self, unit: Unit) -> Scope:
        """A scope in which only the constants of a file are known."""
        return Scope(self._constants.of(unit))

    def model(self, model: ast.Model, unit: Unit) -> GraphOp:
        """The graph of a model; not to be used when errors were reported."""
        scope = self.scope_of(unit)
        self._body(model.body, scope, Frame(unit, calls=self._count_calls(model.body)))
        outputs = OutputOp.make(self._outputs)
        last = [s for s in model.body if isinstance(s, ast.Output)]
        outputs.location = self._location(last[-1].place if last else model.name.place)
        graph = GraphOp.make(model.name.name, [*self.ops, outputs])
        graph.location = self._location(model.name.place)
        return graph

    # --- statements ------------------------------------------------------------------------------

    def _body(self, body: Iterable[ast.Statement], scope: Scope, frame: Frame) -> None:
        for statement in body:
            try:
                self._statement(statement, scope, frame)
            except Problem as problem:
                self._complain(problem, frame)
                self._poison(statement, scope)
            except Poisoned:
                self.poisoned = True
                self._poison(statement, scope)

    def _statement(self, node: ast.Statement, scope: Scope, frame: Frame) -> None:
        match node:
            case ast.Assign():
                self._assign(node, scope, frame)
            case ast.Repeat():
                self._repeat(node, scope, frame)
            case ast.Const():
                scope.names[node.name.name] = evaluate(node.value, scope)
            case ast.Param():
                scope.names[node.name.name] = self._param(node, scope)
            case ast.Input():
                op = InputOp.create(result_types=[self.types.written(node.type, scope)])
                self._append(op, node.name.place, [node.name], scope, frame)
            case ast.State():
                self._state(node, scope, frame)
            case ast.Next():
                self._next(node, scope, frame)
            case ast.Output():
                for name in node.names:
                    self._output(name, scope, frame)

    # --- states ----------------------------------------------------------------------------------

    def _state(self, node: ast.State, scope: Scope, frame: Frame) -> None:
        distance = 1
        if node.distance is not None:
            place = node.distance.place
            distance = whole(evaluate(node.distance, scope), place, "the distance of a state", 1)
            if distance > MOST_DISTANCE:
                raise Problem(place, f"the distance of a state is at most {MOST_DISTANCE}, got {distance:,}")
        op = StateOp.make("", distance, self.types.written(node.type, scope))
        self._append(op, node.name.place, [node.name], scope, frame)
        op.state = StringAttr(op.output.name_hint or node.name.name)
        scope.states[node.name.name] = op

    def _next(self, node: ast.Next, scope: Scope, frame: Frame) -> None:
        state = scope.states.get(node.name.name)
        left = scope.value(node.value, "what is left in a state")
        if state is None:
            raise Poisoned
        if not isinstance(left.owner, OperatorOp):
            what = "a state" if isinstance(left.owner, StateOp) else "an input"
            hint = "a state of a greater distance keeps a value longer" if what == "a state" else None
            message = f"what is left in a state is computed by an operator, '{_shown(node.value)}' is {what}"
            raise Problem(node.value.place, message, hint)
        if left.type != state.output.type:
            kept, given = (show(cast(Tensor, v.type)) for v in (state.output, left))
            message = f"state '{node.name.name}' holds {kept}, but '{_shown(node.value)}' is {given}"
            raise Problem(node.value.place, message)
        op = NextOp.make(state.state.data, left)
        op.location = self._location(node.place)
        self.ops.append(op)

    def _output(self, name: ast.Ident, scope: Scope, frame: Frame) -> None:
        try:
            value = scope.value(ast.Name(name.place, name.name), "an output")
            if isinstance(value.owner, StateOp):
                message = f"'{name.name}' is a state: what an earlier micro-batch left is no output of this one"
                raise Problem(name.place, message)
            self._outputs.append(value)
        except Problem as problem:
            self._complain(problem, frame)
        except Poisoned:
            self.poisoned = True

    @staticmethod
    def _poison(node: ast.Statement, scope: Scope) -> None:
        """Mark all that a failed statement would have defined."""
        names: Sequence[ast.Ident] = ()
        match node:
            case ast.Assign():
                names = node.targets
            case ast.Repeat():
                names = node.carried
            case ast.Const() | ast.Param() | ast.Input() | ast.State():
                names = (node.name,)
            case ast.Output() | ast.Next():
                pass
        for name in names:
            scope.names[name.name] = POISON

    def _complain(self, problem: Problem, frame: Frame) -> None:
        notes = list(problem.notes)
        if frame.caller is not None:
            place, block = frame.caller
            notes.append(note(place, f"in this use of block '{block}'"))
        self.reporter.error(problem.place, problem.message, problem.hint, notes)

    def _param(self, node: ast.Param, scope: Scope) -> Value:
        name = node.name.name
        default = None if node.default is None else evaluate(node.default, scope)
        if name not in self.overrides:
            if default is None:
                raise Problem(node.name.place, f"param '{name}' has no value", f"give one with --set {name}=...")
            return default
        value = self.overrides[name]
        if default is not None and _family(value) != _family(default):
            raise Problem(
                node.name.place,
                f"--set {name}: expected a value like {describe(default)}, got {describe(value)}",
            )
        return value

    def _assign(self, node: ast.Assign, scope: Scope, frame: Frame) -> None:
        call = node.value
        if not isinstance(call, ast.Call):
            hint = "an operator or block is applied here"
            if len(node.targets) == 1:
                hint = f"a constant is written const {node.targets[0].name} = ..."
            raise Problem(call.place, "expected the application of an operator or block", hint)
        self._steps += 1
        if self._steps > MAX_OPERATORS:
            raise self._too_many(call.place)
        name = call.callee.name
        if name in OPERATOR_CLASSES:
            self._operator(node, call, scope, frame)
        elif name in frame.unit.blocks:
            self._call(node, call, scope, frame)
        else:
            raise Poisoned

    def _too_many(self, place: Place) -> Exception:
        self.reporter.error(place, f"a model has at most {MAX_OPERATORS:,} operators and block calls")
        return self.reporter.failure()

    def _operator(self, node: ast.Assign, call: ast.Call, scope: Scope, frame: Frame) -> None:
        cls = OPERATOR_CLASSES[call.callee.name]
        arguments = self.operators.arguments(cls, call, scope, lambda problem: self._complain(problem, frame))
        operands: list[SSAValue] = []
        good = arguments is not None
        positional = [a.value for a in call.arguments if a.name is None]
        for value in positional:
            try:
                operands.append(scope.value(value, f"an operand of '{cls.kind()}'"))
            except Problem as problem:
                self._complain(problem, frame)
                good = False
            except Poisoned:
                good = False
        try:
            cost = written_cost(node, scope, self.accelerators)
            group = written_group(node, scope)
            if group is not None and cost is not None:
                self._join(group, node, frozenset(cost.times))
            if len(operands) == len(positional) or good:
                self.operators.check_arity(cls, call, len(positional))
        except Problem as problem:
            self._complain(problem, frame)
            good = False
        if not good:
            raise Poisoned
        assert arguments is not None
        op = self.operators.create(cls, node, operands, arguments, cost, group, frame.block)  # pyright: ignore
        self._append(op, node.place, node.targets, scope, frame)

    def _join(self, group: str, node: ast.Assign, allotments: frozenset[int]) -> None:
        """Refuse an operator whose written times leave its group without an allotment."""
        place = next(c.value.place for c in node.clauses if c.kind == "group")
        common, first = self._groups.get(group, (allotments, place))
        rest = common & allotments
        if not rest:
            own, theirs = (", ".join(str(k) for k in sorted(each)) for each in (allotments, common))
            raise Problem(
                place,
                f"operators of group '{group}' run on the same accelerators, but this one has times for {own}"
                f" and those before it for {theirs}",
                notes=(note(first, "the first of them is here"),),
            )
        self._groups[group] = rest, first

    # --- repetitions -----------------------------------------------------------------------------

    def _repeat(self, node: ast.Repeat, scope: Scope, frame: Frame) -> None:
        count = whole(evaluate(node.count, scope), node.count.place, "the number of repetitions", 0)
        self._iterations += count
        if self._iterations > MAX_ITERATIONS:
            message = f"a model repeats at most {MAX_ITERATIONS:,} times in all, this makes {self._iterations:,}"
            self.reporter.error(node.count.place, message)
            raise self.reporter.failure()
        if frame.depth >= MAX_DEPTH:
            raise Problem(node.place, f"blocks and repetitions nest deeper than {MAX_DEPTH} levels")
        carried: dict[str, Entry] = {}
        for name in node.carried:
            found = scope.find(name.name)
            carried[name.name] = POISON if found is None else found
        for index in range(count):
            inner = Scope(scope.constants, scope)
            if node.index is not None:
                inner.names[node.index.name] = index
            inner.names.update(carried)
            start = self._steps
            step = Frame(
                frame.unit,
                frame.prefix,
                f"{frame.suffix}.{index}",
                frame.block,
                frame.depth + 1,
                frame.calls,
                frame.caller,
            )
            self._body(node.body, inner, step)
            self._carry(node, carried, inner, step)
            if start + (self._steps - start) * (count - index) > MAX_OPERATORS and index == 0:
                raise self._too_many(node.count.place)
        scope.names.update(carried)

    def _carry(self, node: ast.Repeat, carried: dict[str, Entry], inner: Scope, frame: Frame) -> None:
        """Take over the carried values of one iteration, which must keep their types."""
        for name in node.carried:
            before, after = carried[name.name], inner.names[name.name]
            if isinstance(before, SSAValue) and isinstance(after, SSAValue) and before.type is not after.type:
                definition = _definition(node.body, name.name)
                shown = f"{show(cast(Tensor, before.type))} before and {show(cast(Tensor, after.type))} after"
                self._complain(
                    Problem(
                        definition.place if definition else name.place,
                        f"carried value '{name.name}' changes its type: {shown} an iteration",
                        notes=(note(name.place, "carried here"),),
                    ),
                    frame,
                )
                after = POISON
            elif not isinstance(after, SSAValue | Poison):
                after = POISON
            carried[name.name] = after

    # --- blocks ----------------------------------------------------------------------------------

    def _call(self, node: ast.Assign, call: ast.Call, scope: Scope, frame: Frame) -> None:
        block, unit = frame.unit.blocks[call.callee.name]
        name = block.name.name
        if node.clauses:
            what = "is in a group" if node.clauses[0].kind == "group" else "carries a written cost"
            message = f"only an operator {what}; '{name}' is a block"
            raise Problem(node.clauses[0].place, message)
        if frame.depth >= MAX_DEPTH:
            raise Problem(call.callee.place, f"blocks and repetitions nest deeper than {MAX_DEPTH} levels")
        if len(node.targets) != len(block.results):
            results, names = len(block.results), len(node.targets)
            raise Problem(
                node.targets[min(results, names - 1)].place,
                f"'{name}' gives {results} result{'s' * (results != 1)}, "
                f"but {names} name{' is' if names == 1 else 's are'} assigned",
                notes=(note(block.name.place, "defined here"),),
            )
        size = self._sizes.get(id(block), 0)
        if size is None:
            raise Poisoned
        if self._steps + size > MAX_OPERATORS:
            raise self._too_many(call.callee.place)
        inner = self.scope_of(unit)
        if not bind(block, call, scope, inner, lambda problem: self._complain(problem, frame)):
            raise Poisoned
        self._body(block.body, inner, self._enter(node, call, block, unit, frame))
        for target, result in zip(node.targets, block.results, strict=True):
            found = inner.names.get(result.name)
            scope.names[target.name] = found if isinstance(found, SSAValue) else POISON

    def _enter(self, node: ast.Assign, call: ast.Call, block: ast.Block, unit: Unit, frame: Frame) -> Frame:
        name = block.name.name
        if frame.block is None:
            index = self._block_calls.get(name, 0)
            self._block_calls[name] = index + 1
            prefix = f"{name}.{index}."
            attribute = BlockAttr(StringAttr(name), IntAttr(index))
        else:
            own = name if frame.calls.get(name, 0) == 1 else node.targets[0].name
            prefix = f"{frame.prefix}{own}{frame.suffix}."
            attribute = frame.block
        caller = frame.caller or (call.callee.place, name)
        return Frame(unit, prefix, "", attribute, frame.depth + 1, self._count_calls(block.body), caller)

    # --- names and places ------------------------------------------------------------------------

    def _append(self, op: Operation, place: Place, names: Sequence[ast.Ident], scope: Scope, frame: Frame) -> None:
        op.location = self._location(place)
        for name, result in zip(names, op.results, strict=True):
            result.name_hint = self._hint(f"{frame.prefix}{name.name}{frame.suffix}")
            scope.names[name.name] = result
        self.ops.append(op)

    def _hint(self, name: str) -> str:
        """A unique name that xDSL prints unchanged: it drops a tail of ``_<digits>``, so that becomes ``.<digits>``."""
        name = _TAIL.sub(r".\1", name)
        unique, count = name, 1
        while unique in self._hints:
            count += 1
            unique = f"{name}.v{count}"
        self._hints.add(unique)
        return unique

    def _location(self, place: Place) -> FileLineColLoc:
        found = self._locations.get(id(place))
        if found is None:
            at = place.location()
            found = FileLineColLoc(StringAttr(at.file), IntAttr(at.line), IntAttr(at.column))
            self._locations[id(place)] = found
        return found

    def _count_calls(self, body: Sequence[ast.Statement]) -> Mapping[str, int]:
        """How often a body calls each name."""
        found = self._call_counts.get(id(body))
        if found is None:
            counts: dict[str, int] = {}
            for statement in statements(body):
                if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                    name = statement.value.callee.name
                    counts[name] = counts.get(name, 0) + 1
            found = self._call_counts[id(body)] = counts
        return found


def _shown(node: ast.Expr) -> str:
    return node.name if isinstance(node, ast.Name) else "it"


_TAIL = re.compile(r"_(\d+)$")


def statements(body: Iterable[ast.Statement]) -> Iterable[ast.Statement]:
    """All statements of a body, those of repetitions included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.Repeat):
            yield from statements(statement.body)


def _definition(body: Iterable[ast.Statement], name: str) -> ast.Ident | None:
    for statement in body:
        if isinstance(statement, ast.Assign | ast.Repeat):
            names = statement.targets if isinstance(statement, ast.Assign) else statement.carried
            for ident in names:
                if ident.name == name:
                    return ident
    return None


def _family(value: Value) -> Any:
    """What kind of value a param takes: numbers of either sort, or quantities of one dimension."""
    if isinstance(value, Quantity):
        return value.dimension
    return "number" if is_number(value) else type(value)
