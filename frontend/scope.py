"""What names mean while a model is expanded."""

from __future__ import annotations

from collections.abc import Mapping

from xdsl.ir import SSAValue

from dialects.structure import StateOp
from frontend import ast
from frontend.evaluate import Poisoned, Problem, Value, describe, evaluate
from frontend.program import Unit
from frontend.report import Reporter


class Poison:
    """Stands for whatever an earlier error kept from being known."""


POISON = Poison()

Entry = Value | SSAValue | Poison


class Scope:
    """The names of a body and, through ``parent``, of the bodies around it."""

    __slots__ = ("constants", "names", "parent", "states")

    def __init__(self, constants: FileConstants, parent: Scope | None = None):
        self.names: dict[str, Entry] = {}
        self.states: dict[str, StateOp] = {}
        """The states that this body declares."""
        self.parent = parent
        self.constants = constants

    def find(self, name: str) -> Entry | None:
        """What ``name`` means here; None when it is no local name."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None

    def constant(self, name: ast.Name) -> Value:
        """The constant of that name; raises Problem or Poisoned."""
        found = self.find(name.name)
        if found is None:
            return self.constants.constant(name)
        if isinstance(found, Poison):
            raise Poisoned
        if isinstance(found, SSAValue):
            raise Problem(name.place, f"'{name.name}' is a tensor; a constant is needed here")
        return found

    def value(self, node: ast.Expr, what: str) -> SSAValue:
        """The tensor that an operand names; raises Problem or Poisoned."""
        if isinstance(node, ast.Name):
            found = self.find(node.name)
            if isinstance(found, SSAValue):
                return found
            if isinstance(found, Poison):
                raise Poisoned
            if found is None:
                found = self.constants.constant(node)
            raise Problem(
                node.place,
                f"{what} must be a tensor, '{node.name}' is {describe(found)}",
                "constants are given by name",
            )
        if isinstance(node, ast.Call):
            raise Problem(
                node.place,
                f"{what} must be the name of a tensor, found a call",
                f"give its result a name first: h = {node.callee.name}(...)",
            )
        found = evaluate(node, self)
        raise Problem(node.place, f"{what} must be a tensor, got {describe(found)}", "constants are given by name")


class FileConstants:
    """The constants a file declares or sees through its imports, evaluated once."""

    def __init__(self, values: Mapping[str, Value | Poison]):
        self._values = values

    def constant(self, name: ast.Name) -> Value:
        """The constant of that name; raises Poisoned when it has none or its definition is wrong."""
        value = self._values.get(name.name, POISON)
        if isinstance(value, Poison):
            raise Poisoned
        return value


class Constants:
    """The constants of every file of a program; their errors are reported when they are evaluated."""

    def __init__(self, units: list[Unit], reporter: Reporter):
        """``units`` holds imported files before those that import them."""
        self._files: dict[int, FileConstants] = {}
        evaluated: dict[int, Value | Poison] = {}
        for unit in units:
            values: dict[str, Value | Poison] = {}
            scope = FileConstants(values)
            for name, (declaration, owner) in unit.constants.items():
                if owner is not unit:
                    values[name] = evaluated[id(declaration)]
            for declaration in unit.file.declarations:
                if isinstance(declaration, ast.Const) and unit.constants[declaration.name.name][0] is declaration:
                    value = _evaluate(declaration, scope, reporter)
                    values[declaration.name.name] = evaluated[id(declaration)] = value
            self._files[id(unit)] = scope

    def of(self, unit: Unit) -> FileConstants:
        """The constants that a file can use."""
        return self._files[id(unit)]


def _evaluate(declaration: ast.Const, scope: FileConstants, reporter: Reporter) -> Value | Poison:
    try:
        return evaluate(declaration.value, scope)
    except Problem as problem:
        reporter.error(problem.place, problem.message, problem.hint, problem.notes)
    except Poisoned:
        pass
    return POISON
