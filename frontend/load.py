"""From source text to a module of level 0."""

from __future__ import annotations

from collections.abc import Mapping

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation

from dialects.diagnostics import Diagnostic, TaktError
from dialects.structure import PlatformOp
from frontend import ast
from frontend.evaluate import Problem, Value, evaluate
from frontend.lower import Lowering, statements
from frontend.names import check_names
from frontend.parser import collection_suspended, parse_expression
from frontend.platforms import PlatformBuilder
from frontend.program import Program, Unit
from frontend.report import Reporter, choices, note, suggest
from frontend.scope import Constants
from frontend.source import Source


def load(
    source: Source,
    *,
    platform: Source | None = None,
    overrides: Mapping[str, str] = {},
    model: str | None = None,
) -> ModuleOp:
    """Compile a model to IR of level 0.

    ``platform`` is a file that defines one platform; without it, one defined by the model's file or
    its imports is used. ``overrides`` gives values to params and ``model`` chooses among several
    models. Raises TaktError with every independent error found.
    """
    with collection_suspended():
        return _load(source, platform, overrides, model)


def _load(source: Source, platform: Source | None, overrides: Mapping[str, str], model: str | None) -> ModuleOp:
    reporter = Reporter()
    program = Program(reporter)
    unit = program.load(source)
    platform_unit = program.load(platform) if platform is not None else None
    sizes = check_names(program, reporter)
    lowering = Lowering(reporter, Constants(program.units, reporter), sizes)
    machine = None
    builder = PlatformBuilder(reporter, lowering.scope_of)
    if platform is None:
        machine = _own_platform(unit, builder, reporter) if unit else None
    elif platform_unit is not None:
        machine = _given_platform(platform_unit, builder, reporter)
    if unit is None:
        raise reporter.failure()
    chosen = _choose_model(unit, model, reporter)
    if chosen is None:
        raise reporter.failure()
    lowering.accelerators = machine.count if machine else None
    lowering.overrides = _overrides(chosen, overrides, reporter)
    graph = lowering.model(chosen, unit)
    reporter.raise_if_failed()
    if lowering.poisoned:
        raise TaktError(f"model '{chosen.name.name}' could not be expanded: this is an error of takt itself")
    ops: list[Operation] = [machine, graph] if machine else [graph]
    return ModuleOp(ops)


def _choose_model(unit: Unit, name: str | None, reporter: Reporter) -> ast.Model | None:
    file = unit.file.source.name
    if name is not None:
        if name in unit.models:
            return unit.models[name][0]
        hint = choices(name, unit.models, "it has")
        reporter.add(Diagnostic(f"'{file}' has no model '{name}'", hint=hint))
        return None
    if not unit.models:
        place = unit.file.source.here(0, 0)
        if not unit.file.declarations:
            reporter.error(place, "the file is empty: no model in it", "a model is written: model name { ... }")
        else:
            hint = "this file defines a platform; give it with --platform" if unit.platforms else None
            reporter.error(place, "no model in this file", hint or "a model is written: model name { ... }")
        return None
    found = [entry[0] for entry in unit.models.values()]
    if len(found) > 1:
        notes = [note(m.name.place, f"model '{m.name.name}'") for m in found]
        reporter.error(found[1].name.place, "several models in this file: choose one by name", notes=notes)
        return None
    return found[0]


def _given_platform(unit: Unit, builder: PlatformBuilder, reporter: Reporter) -> PlatformOp | None:
    """The one platform of a platform file (its imports only when it defines none itself)."""
    return _one_platform(unit, builder, reporter, required=True)


def _own_platform(unit: Unit, builder: PlatformBuilder, reporter: Reporter) -> PlatformOp | None:
    return _one_platform(unit, builder, reporter, required=False)


def _one_platform(unit: Unit, builder: PlatformBuilder, reporter: Reporter, required: bool) -> PlatformOp | None:
    own = [entry for entry in unit.platforms.values() if entry[1] is unit]
    found = own or list(unit.platforms.values())
    if not found:
        if required:
            place = unit.file.source.here(0, 0)
            reporter.error(
                place, "no platform in this file", "a platform is written: platform name { accelerators = ... }"
            )
        return None
    if len(found) > 1:
        notes = [note(p.name.place, f"platform '{p.name.name}'") for p, _ in found]
        place = found[1][0].name.place if own else unit.file.source.here(0, 0)
        reporter.error(place, "several platforms are defined, one is needed", notes=notes)
        return None
    return builder.build(*found[0])


def _overrides(model: ast.Model, texts: Mapping[str, str], reporter: Reporter) -> dict[str, Value]:
    """The values given with ``--set``, evaluated."""
    params = {s.name.name: s for s in statements(model.body) if isinstance(s, ast.Param)}
    values: dict[str, Value] = {}
    for name, text in texts.items():
        if name not in params:
            hint = suggest(name, params) or (f"it has {', '.join(sorted(params))}" if params else "it has no params")
            reporter.add(Diagnostic(f"--set {name}: model '{model.name.name}' has no param '{name}'", hint=hint))
            continue
        try:
            values[name] = evaluate(parse_expression(text, "--set"), _NoNames())
        except (Problem, TaktError) as error:
            reason = error.message if isinstance(error, Problem) else error.diagnostics[0].message
            message = f"--set {name}={text}: {reason}"
            reporter.add(Diagnostic(message, params[name].name.place.location(), "give a number, a quantity or a text"))
    return values


class _NoNames:
    """``--set`` values name nothing."""

    def constant(self, name: ast.Name) -> Value:
        hint = f'a text is written in quotes: "{name.name}"'
        raise Problem(name.place, f"'{name.name}' is not a value", hint)
