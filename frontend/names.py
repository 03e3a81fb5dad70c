"""What can be said about names without expanding anything: each mistake once, in every body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dialects.operators import ELEMENT_TYPES
from frontend import ast
from frontend.evaluate import FUNCTIONS
from frontend.network import constants_of
from frontend.program import OPERATOR_CLASSES, Program, Unit
from frontend.report import Reporter, choices, note, suggest
from frontend.source import Place
from frontend.units import UNITS, unknown_unit

VALUE, CONSTANT = "value", "constant"


@dataclass
class _Scope:
    """The names of one body, with the kind and the place of each."""

    body: Sequence[ast.Statement]
    parent: _Scope | None = None
    names: dict[str, tuple[str, Place]] = field(default_factory=dict[str, tuple[str, Place]])
    position: int = 0
    """Index of the statement being checked."""
    carried: set[str] = field(default_factory=set[str])
    """Carried names that the body has still to reassign."""
    states: dict[str, list[ast.Ident]] = field(default_factory=dict[str, list[ast.Ident]])
    """State of this body → its name where it is declared, then where it is left a value."""
    given_up: set[str] = field(default_factory=set[str])
    """Names already reported as unknown."""

    def find(self, name: str) -> tuple[str, Place] | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None

    def chain(self) -> Iterator[_Scope]:
        scope: _Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent


def check_names(program: Program, reporter: Reporter) -> Mapping[int, int | None]:
    """Report wrong names in every file.

    Returns, for the identity of every block, a lower bound on the operators and block calls that one
    call of it makes; None for a block that calls itself.
    """
    for unit in program.units:
        checker = _Checker(unit, reporter)
        checker.file()
    return _sizes(program, reporter)


class _Checker:
    """Checks the names of one file."""

    def __init__(self, unit: Unit, reporter: Reporter):
        self.unit = unit
        self.reporter = reporter

    def file(self) -> None:
        """Check every declaration."""
        outside = _Scope(())
        later = {n for n, (_, unit) in self.unit.constants.items() if unit is self.unit}
        for declaration in self.unit.file.declarations:
            match declaration:
                case ast.Const():
                    self._file_constant(declaration, later)
                case ast.Block():
                    self._block(declaration)
                case ast.Model():
                    self._model(declaration)
                case ast.Accelerator():
                    self._fields(declaration.fields, outside)
                case ast.Platform():
                    self._fields(declaration.fields, outside)
                    for link in declaration.links:
                        if link.size is not None:
                            self._expression(link.size, outside)
                        self._fields(link.fields, outside)
                        for table in link.measured:
                            for value in (table.group, *(part for entry in table.table.entries for part in entry)):
                                self._expression(value, outside)
                case ast.Import():
                    pass

    def _fields(self, fields: Iterable[ast.Field], scope: _Scope) -> None:
        for item in fields:
            for value in constants_of(item):
                self._expression(value, scope)

    def _file_constant(self, node: ast.Const, later: set[str]) -> None:
        """A constant may use those above it and imported ones; ``later`` holds this one and those below."""
        for name in _names(node.value):
            if name.name in later:
                first = self.unit.constants[name.name][0].name
                message = f"constant '{name.name}' is used before its definition"
                if name.name == node.name.name:
                    message = f"constant '{name.name}' is defined by itself"
                self.reporter.error(name.place, message, notes=[note(first.place, "defined here")])
        self._expression(node.value, _Scope(()))
        later.discard(node.name.name)

    # --- blocks and models -----------------------------------------------------------------------

    def _block(self, node: ast.Block) -> None:
        scope = _Scope(node.body)
        for parameter in node.constants:
            self._define(parameter.name, CONSTANT, scope)
        free: dict[str, Place] = {}
        for parameter in node.values:
            if parameter.type is not None:
                self._bound_names(parameter.type, scope, free)
        for name, place in free.items():
            scope.names.setdefault(name, (CONSTANT, place))
        for parameter in node.values:
            self._define(parameter.name, VALUE, scope)
            if parameter.type is not None:
                for dim in parameter.type.dims:
                    self._expression(dim, scope)
        for parameter in node.constants:
            if parameter.default is not None:
                self._expression(parameter.default, scope)
        self._body(scope, top=None)
        seen: dict[str, ast.Ident] = {}
        for result in node.results:
            if result.name in seen:
                first = note(seen[result.name].place, "first named here")
                self.reporter.error(result.place, f"result '{result.name}' is named twice", notes=[first])
            seen.setdefault(result.name, result)
            self._result(node, result, scope)

    @staticmethod
    def _bound_names(type_: ast.Type, scope: _Scope, free: dict[str, Place]) -> None:
        for dim in type_.dims:
            if isinstance(dim, ast.Name) and dim.name not in scope.names:
                free.setdefault(dim.name, dim.place)
        if type_.element.name not in ELEMENT_TYPES:
            free.setdefault(type_.element.name, type_.element.place)

    def _result(self, node: ast.Block, result: ast.Ident, scope: _Scope) -> None:
        found = scope.names.get(result.name)
        if found is None:
            values = [n for n, (kind, _) in scope.names.items() if kind == VALUE]
            message = f"block '{node.name.name}' never defines its result '{result.name}'"
            self.reporter.error(result.place, message, suggest(result.name, values))
        elif found[0] != VALUE:
            self.reporter.error(result.place, f"result '{result.name}' is a constant, not a tensor")

    def _model(self, node: ast.Model) -> None:
        self._body(_Scope(node.body), top=node)
        if not any(isinstance(s, ast.Output) for s in node.body):
            self.reporter.error(node.name.place, f"model '{node.name.name}' has no output", "end it with: output y")

    # --- statements ------------------------------------------------------------------------------

    def _body(self, scope: _Scope, top: ast.Model | None) -> None:
        for position, statement in enumerate(scope.body):
            scope.position = position
            match statement:
                case ast.Const():
                    self._expression(statement.value, scope)
                    self._define(statement.name, CONSTANT, scope)
                case ast.Param():
                    self._only_in_model(statement, "param", top)
                    if statement.default is not None:
                        self._expression(statement.default, scope)
                    self._define(statement.name, CONSTANT, scope)
                case ast.Input():
                    self._only_in_model(statement, "input", top)
                    self._input_type(statement.type, scope)
                    self._define(statement.name, VALUE, scope)
                case ast.State():
                    self._input_type(statement.type, scope)
                    if statement.distance is not None:
                        self._expression(statement.distance, scope)
                    self._define(statement.name, VALUE, scope)
                    scope.states.setdefault(statement.name.name, [statement.name])
                case ast.Next():
                    self._next(statement, scope)
                case ast.Output():
                    self._only_in_model(statement, "output", top)
                    for name in statement.names:
                        self._use(name.name, name.place, scope)
                case ast.Assign():
                    self._assign(statement, scope)
                case ast.Repeat():
                    self._repeat(statement, scope)
        for name, (declared, *left) in scope.states.items():
            if not left:
                hint = f"write next {name} = ... where its next value is known"
                self.reporter.error(declared.place, f"state '{name}' is never left a value", hint)

    def _next(self, node: ast.Next, scope: _Scope) -> None:
        """A state is left one value, in the body that declares it, so that each expansion leaves one."""
        self._expression(node.value, scope)
        name, place = node.name.name, node.name.place
        if name in scope.states:
            declared, *left = scope.states[name]
            if left:
                first = note(left[0].place, "first left here")
                self.reporter.error(place, f"state '{name}' is left two values", notes=[first])
            scope.states[name] = [declared, *left, node.name]
            return
        for outer in scope.chain():
            if name in outer.states:
                declared = outer.states[name][0]
                outer.states[name].append(node.name)
                message = f"state '{name}' is left a value inside a repetition, once an iteration"
                hint = "carry the value through the repetition and leave it after that"
                self.reporter.error(place, message, hint, [note(declared.place, "declared here")])
                return
        found = scope.find(name)
        if found is not None:
            hint = f"declare state {name}: tensor<...>" if found[0] == VALUE else None
            self.reporter.error(place, f"'{name}' is no state", hint, [note(found[1], "defined here")])
            return
        states = [n for outer in scope.chain() for n in outer.states]
        hint = suggest(name, states) or f"declare state {name}: tensor<...> before"
        self.reporter.error(place, f"unknown state '{name}'", hint)

    def _only_in_model(self, statement: ast.Statement, word: str, top: ast.Model | None) -> None:
        if top is None:
            place = statement.place
            start = Place(place.source, place.start, place.start + len(word))
            self.reporter.error(start, f"'{word}' stands only at the top level of a model")

    def _input_type(self, type_: ast.Type, scope: _Scope) -> None:
        for dim in type_.dims:
            self._expression(dim, scope)
        element = type_.element
        if element.name in ELEMENT_TYPES or self._visible(element.name, scope):
            return
        hint = choices(element.name, ELEMENT_TYPES, "element types")
        self.reporter.error(element.place, f"unknown element type '{element.name}'", hint)

    def _assign(self, node: ast.Assign, scope: _Scope) -> None:
        if isinstance(node.value, ast.Call):
            callee = node.value.callee
            if callee.name not in OPERATOR_CLASSES and callee.name not in self.unit.blocks:
                self._unknown_callee(callee)
            for argument in node.value.arguments:
                self._expression(argument.value, scope)
        else:
            self._expression(node.value, scope)
        for clause in node.clauses:
            if isinstance(clause.value, ast.Table):
                for key, value in clause.value.entries:
                    self._expression(key, scope)
                    self._expression(value, scope)
            else:
                self._expression(clause.value, scope)
        for target in node.targets:
            self._define(target, VALUE, scope)

    def _unknown_callee(self, callee: ast.Ident) -> None:
        hint = suggest(callee.name, [*OPERATOR_CLASSES, *self.unit.blocks])
        if hint is None and callee.name in FUNCTIONS:
            hint = f"constants are computed in a const: const n = {callee.name}(...)"
        self.reporter.error(callee.place, f"unknown operator or block '{callee.name}'", hint)

    def _repeat(self, node: ast.Repeat, scope: _Scope) -> None:
        self._expression(node.count, scope)
        inner = _Scope(node.body, scope)
        if node.index is not None:
            self._define(node.index, CONSTANT, inner)
        seen: dict[str, ast.Ident] = {}
        for name in node.carried:
            if name.name in seen:
                first = note(seen[name.name].place, "first named here")
                self.reporter.error(name.place, f"'{name.name}' is carried twice", notes=[first])
                continue
            seen[name.name] = name
            found = scope.find(name.name)
            if found is None and name.name not in scope.given_up:
                known = [n for outer in scope.chain() for n, (kind, _) in outer.names.items() if kind == VALUE]
                hint = suggest(name.name, known) or f"define '{name.name}' before the repetition"
                self.reporter.error(name.place, f"unknown carried value '{name.name}'", hint)
            elif found is not None and found[0] != VALUE:
                self.reporter.error(name.place, f"'{name.name}' is a constant; only tensors are carried")
            inner.carried.add(name.name)
        self._body(inner, top=None)
        for name in node.carried:
            if name.name in inner.carried and scope.find(name.name) is not None:
                message = f"carried value '{name.name}' is never reassigned in the repetition"
                self.reporter.error(name.place, message, f"assign {name.name} in the body, or do not carry it")
                inner.carried.discard(name.name)

    # --- definitions and uses --------------------------------------------------------------------

    def _define(self, name: ast.Ident, kind: str, scope: _Scope) -> None:
        if name.name in scope.carried:
            scope.carried.discard(name.name)
            scope.names[name.name] = (kind, name.place)
            return
        found = scope.find(name.name)
        if found is not None:
            hint = None
            if name.name not in scope.names and kind == VALUE and found[0] == VALUE:
                hint = f"to carry it through the repetition write: repeat ... carry {name.name}"
            elif scope.parent is not None and name.name in scope.names and kind == VALUE:
                hint = "a carried value is reassigned once"
            self.reporter.error(
                name.place, f"'{name.name}' is already defined", hint, [note(found[1], "first defined here")]
            )
            return
        scope.names[name.name] = (kind, name.place)

    def _visible(self, name: str, scope: _Scope) -> bool:
        return scope.find(name) is not None or name in self.unit.constants

    def _use(self, name: str, place: Place, scope: _Scope) -> None:
        if self._visible(name, scope) or name in scope.given_up:
            return
        for outer in scope.chain():
            for later in outer.body[outer.position :]:
                definition = _definition(later, name)
                if definition is not None:
                    self._too_early(name, place, outer, definition)
                    scope.given_up.add(name)
                    return
        scope.given_up.add(name)
        for outer in scope.chain():
            for earlier in outer.body[: outer.position]:
                if isinstance(earlier, ast.Repeat) and (inner := _inside(earlier, name)):
                    message = f"'{name}' is defined only inside the repetition"
                    hint = f"define it before and carry it: repeat ... carry {name}"
                    self.reporter.error(place, message, hint, [note(inner.place, "defined here")])
                    return
        known = {n for outer in scope.chain() for n in outer.names} | set(self.unit.constants)
        hint = suggest(name, known)
        if hint is None and name in ELEMENT_TYPES:
            hint = f'an element type is written as text: "{name}"'
        self.reporter.error(place, f"unknown name '{name}'", hint)

    def _too_early(self, name: str, place: Place, scope: _Scope, definition: ast.Ident) -> None:
        """A use before the definition: is it an oversight, or do the values depend on each other?"""
        current = scope.body[scope.position]
        notes = [note(definition.place, f"'{name}' is defined here")]
        if isinstance(current, ast.Const | ast.Param) and name == current.name.name:
            self.reporter.error(place, f"constant '{name}' is defined by itself")
        elif path := _path(name, current, scope.body):
            cycle = " -> ".join(path)
            hint = "what passes from one iteration to the next is carried: repeat ... carry x"
            self.reporter.error(place, f"values depend on one another in a cycle: {cycle}", hint, notes)
        else:
            self.reporter.error(place, f"'{name}' is used before its definition", "move the definition up", notes)

    def _expression(self, node: ast.Expr, scope: _Scope) -> None:
        for leaf in _leaves(node):
            if isinstance(leaf, ast.Name):
                self._use(leaf.name, leaf.place, scope)
            elif isinstance(leaf, ast.Measure) and leaf.unit.name not in UNITS:
                self.reporter.error(leaf.unit.place, *unknown_unit(leaf.unit.name))


# --- walking the tree ------------------------------------------------------------------------------


def _leaves(node: ast.Expr) -> Iterator[ast.Expr]:
    """The literals and names of an expression, from left to right."""
    match node:
        case ast.Items():
            for item in node.items:
                yield from _leaves(item)
        case ast.Negate():
            yield from _leaves(node.operand)
        case ast.Binary():
            yield from _leaves(node.left)
            yield from _leaves(node.right)
        case ast.Call():
            for argument in node.arguments:
                yield from _leaves(argument.value)
        case _:
            yield node


def _names(node: ast.Expr) -> Iterator[ast.Name]:
    return (leaf for leaf in _leaves(node) if isinstance(leaf, ast.Name))


def _defined(statement: ast.Statement) -> tuple[ast.Ident, ...]:
    """The names a statement defines for those after it."""
    match statement:
        case ast.Assign():
            return statement.targets
        case ast.Repeat():
            return statement.carried
        case ast.Const() | ast.Param() | ast.Input() | ast.State():
            return (statement.name,)
        case ast.Output() | ast.Next():
            return ()


def _definition(statement: ast.Statement, name: str) -> ast.Ident | None:
    if isinstance(statement, ast.Repeat):
        return None  # a repetition reassigns what exists before it
    return next((ident for ident in _defined(statement) if ident.name == name), None)


def _inside(node: ast.Repeat, name: str) -> ast.Ident | None:
    for statement in node.body:
        for ident in _defined(statement):
            if ident.name == name:
                return ident
    return None


def _used(statement: ast.Statement) -> list[str]:
    """The names a statement reads, those of a repetition's body included."""
    match statement:
        case ast.Assign():
            return [n.name for n in _names(statement.value)]
        case ast.Repeat():
            inner = [n for s in statement.body for n in _used(s)]
            return [n.name for n in statement.carried] + inner
        case ast.Const():
            return [n.name for n in _names(statement.value)]
        case _:
            return []


def _path(name: str, current: ast.Statement, body: Sequence[ast.Statement]) -> list[str] | None:
    """A path of dependences from ``name`` back to ``name`` through what ``current`` defines, if any."""
    producers: dict[str, ast.Statement] = {}
    for statement in body:
        names = _defined(statement)
        if isinstance(statement, ast.Repeat):
            names += tuple(i for s in statement.body for i in _defined(s))
        for ident in names:
            producers.setdefault(ident.name, statement)
    if producers.get(name) is current:
        return [name, name]
    targets = {n for n, producer in producers.items() if producer is current}
    came_from: dict[str, str] = {}
    queue = [name]
    for reached in queue:
        for used in _used(producers[reached]):
            if used in targets:
                back = [used, reached]
                while back[-1] != name:
                    back.append(came_from[back[-1]])
                return [used, *reversed(back[1:]), used]
            if used in producers and used not in came_from and used != name:
                came_from[used] = reached
                queue.append(used)
    return None


# --- recursion -------------------------------------------------------------------------------------


def _calls(body: Iterable[ast.Statement]) -> Iterator[ast.Ident]:
    for statement in body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            yield statement.value.callee
        elif isinstance(statement, ast.Repeat):
            yield from _calls(statement.body)


def _sizes(program: Program, reporter: Reporter) -> Mapping[int, int | None]:
    """The least size of every block; reports each chain of blocks that call one another in a cycle."""
    sizes: dict[int, int | None] = {}
    recursive: set[int] = set()
    for unit in program.units:
        for block, owner in unit.blocks.values():
            if owner is unit and id(block) not in sizes:
                _walk(block, owner, sizes, recursive, reporter)
    return {block: None if block in recursive else size for block, size in sizes.items()}


def _size(body: Iterable[ast.Statement], unit: Unit, sizes: Mapping[int, int | None]) -> int:
    """Operators and calls of a body; a repetition whose count is no literal may run zero times."""
    size = 0
    for statement in body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            callee = unit.blocks.get(statement.value.callee.name)
            size += 1 + ((sizes.get(id(callee[0])) or 0) if callee else 0)
        elif isinstance(statement, ast.Repeat) and isinstance(statement.count, ast.Number):
            size += max(0, int(statement.count.value)) * _size(statement.body, unit, sizes)
    return size


def _walk(block: ast.Block, unit: Unit, sizes: dict[int, int | None], recursive: set[int], reporter: Reporter) -> None:
    """Depth-first search without Python recursion, for long chains of blocks."""
    stack = [(block, unit, _calls(block.body))]
    open_blocks = {id(block): 0}
    while stack:
        current, owner, calls = stack[-1]
        callee = next(calls, None)
        if callee is None:
            sizes[id(current)] = _size(current.body, owner, sizes)
            del open_blocks[id(current)]
            stack.pop()
            continue
        if callee.name not in owner.blocks:
            continue
        following, home = owner.blocks[callee.name]
        if id(following) in open_blocks:
            cycle = [b for b, _, _ in stack[open_blocks[id(following)] :]]
            chain = " -> ".join([b.name.name for b in cycle] + [following.name.name])
            message = f"blocks call one another in a cycle: {chain}"
            if len(cycle) == 1:
                message = f"block '{following.name.name}' calls itself: {chain}"
            reporter.error(callee.place, message, "blocks are expanded, so none may contain itself; use repeat")
            recursive.update(id(b) for b in cycle)
        elif id(following) not in sizes:
            open_blocks[id(following)] = len(stack)
            stack.append((following, home, _calls(following.body)))
