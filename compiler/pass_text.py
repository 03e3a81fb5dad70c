"""Passes and targets as text: reading ``name{option=value ...},name``, and describing passes for people."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from xdsl.passes import ModulePass
from xdsl.utils.arg_spec import ArgSpec, parse_pipeline
from xdsl.utils.exceptions import ArgSpecParseError
from xdsl.utils.target import Target

from compiler.command_line import UsageError, did_you_mean

PassFactories = Mapping[str, Callable[[], type[ModulePass]]]
TargetFactories = Mapping[str, Callable[[], type[Target]]]
_Named = TypeVar("_Named", ModulePass, Target)


def own_passes() -> PassFactories:
    """takt's passes by name."""
    from passes import get_all_passes

    return get_all_passes()


@cache
def all_passes() -> PassFactories:
    """takt's passes and those of xDSL, by name."""
    from xdsl.transforms import get_all_passes

    return {**get_all_passes(), **own_passes()}


def make_pass(name: str, options: Mapping[str, Any] | None = None) -> ModulePass:
    """The pass ``name`` with those of ``options`` that are not None; other options keep their default."""
    cls = find_pass(name, own_passes())
    given = {k: v for k, v in (options or {}).items() if v is not None}
    return cls(**given)


def option_names(name: str) -> tuple[str, ...]:
    """The options of takt's pass ``name``, as Python writes them."""
    return tuple(f.name for f in dataclasses.fields(find_pass(name, own_passes())) if f.init)


def find_pass(name: str, passes: PassFactories) -> type[ModulePass]:
    """The class of the pass called ``name``; UsageError when there is none."""
    if name not in passes:
        raise UsageError(f"there is no pass '{name}'{did_you_mean(name, passes) or '; --list-passes names all'}")
    return passes[name]()


def parse_passes(text: str, passes: PassFactories) -> tuple[ModulePass, ...]:
    """The passes of a pipeline text. UsageError, naming pass and option, for anything wrong with it."""
    try:
        specs = list(parse_pipeline(text))
    except ArgSpecParseError as error:  # a BaseException in xDSL 0.74
        message = f"bad pipeline '{text}', {_syntax_message(error)}"
        raise UsageError(f'{message}; write PASS{{option=value option="text"}},PASS') from None
    return tuple(_from_spec(find_pass(spec.name, passes), spec, "pass") for spec in specs)


def parse_target(text: str, targets: TargetFactories) -> Target:
    """The target that ``name`` or ``name{option=value}`` asks for; UsageError, naming it and the option, if none."""
    try:
        specs = list(parse_pipeline(text))
    except ArgSpecParseError as error:
        message = f"bad target '{text}', {_syntax_message(error)}"
        raise UsageError(f"{message}; write TARGET{{option=value}}") from None
    name = specs[0].name if len(specs) == 1 else text
    if name not in targets:
        raise UsageError(f"there is no target '{name}'{did_you_mean(name, targets)}")
    return _from_spec(targets[name](), specs[0], "target")


def _syntax_message(error: ArgSpecParseError) -> str:
    # Lines: a title, the place, the text, carets, the message below them.
    lines = str(error).splitlines()
    column = lines[1].rpartition(":")[2] if len(lines) > 1 else "1"
    reason = lines[4].strip() if len(lines) > 4 else "this cannot be read"
    return f"at character {column}: {reason[:1].lower()}{reason[1:]}"


def _from_spec(cls: type[_Named], spec: ArgSpec, kind: str) -> _Named:
    spec = spec.normalize_parameter_names()
    hints = get_type_hints(cls)
    options = [f.name for f in dataclasses.fields(cls) if f.init]
    values: dict[str, Any] = {}
    for name, value in spec.parameters.items():
        if name not in options:
            shown = [_dashed(o) for o in options]
            raise UsageError(f"{kind} '{cls.name}' has no option '{_dashed(name)}'{did_you_mean(_dashed(name), shown)}")
        values[name] = _floats(value, hints[name])
    for name in values:
        try:  # one at a time, to know which one is wrong
            required = {r: values[r] for r in cls.required_fields() if r in values}
            if cls.required_fields() <= required.keys():
                cls.from_spec(ArgSpec(cls.name, {**required, name: values[name]}))
        except ValueError:
            given = ",".join(str(v).lower() if isinstance(v, bool) else str(v) for v in values[name])
            expected = f"option '{_dashed(name)}' of {kind} '{cls.name}' takes {show_type(hints[name])}"
            raise UsageError(f"{expected}, not '{given}'" if given else f"{expected}, and got no value") from None
    try:
        return cls.from_spec(ArgSpec(cls.name, values))
    except ValueError as error:
        raise UsageError(f"{kind} '{cls.name}': {error}") from None


def _floats(value: tuple[Any, ...], hint: Any) -> tuple[Any, ...]:
    """A whole number is a fine value for an option that takes real numbers; xDSL thinks not."""
    if hint is float or (float in get_args(hint) and int not in get_args(hint)):
        return tuple(float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)
    return value


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def show_type(hint: Any) -> str:
    """A type as a person says it: ``an integer``, ``one of a, b``."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(hint))
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    if hint in words:
        return words[hint]
    if get_origin(hint) is tuple:
        return f"a list ({show_type(get_args(hint)[0])}, ...)"
    parts = [a for a in get_args(hint) if a is not type(None)]
    if float in parts:
        parts = [a for a in parts if a is not int]
    return " or ".join(show_type(p) for p in parts) if parts else str(hint)


# --- descriptions --------------------------------------------------------------------------


def list_passes(passes: PassFactories) -> str:
    """One line a pass: its name and the first line of its docstring."""
    width = max(map(len, passes), default=0)
    lines = [f"  {name:{width}}  {_summary(factory())}" for name, factory in sorted(passes.items())]
    return "\n".join(lines) + "\n"


def _summary(cls: type[ModulePass]) -> str:
    return (inspect.getdoc(cls) or "(no description)").strip().split("\n")[0]


def pass_help(cls: type[ModulePass]) -> str:
    """The docstring of a pass, and its options with type, default and documentation.

    An option is documented by a line ``name: text`` under ``options:`` in the docstring, or by a string
    below its field.
    """
    text, documented = _split_options((inspect.getdoc(cls) or "(no description)").strip())
    documented |= _field_docs(cls)
    lines = [cls.name, "", textwrap.indent(text, "  "), ""]
    hints = get_type_hints(cls)
    options = [f for f in dataclasses.fields(cls) if f.init]
    lines.append("options:" if options else "no options")
    for field in options:
        lines.append(f"  {_dashed(field.name)}={show_type(hints[field.name])}{_default(field)}")
        lines += textwrap.wrap(
            documented.get(field.name, ""),
            96,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def _split_options(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring without its ``options:`` part, and what that part says of each option."""
    lines = doc.splitlines()
    if "options:" not in lines:
        return doc, {}
    start = lines.index("options:")
    end = next((i for i in range(start + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
    found: dict[str, str] = {}
    name = ""
    for line in lines[start + 1 : end]:
        if match := re.match(r"  ([\w-]+): (.*)", line):
            name = match[1].replace("-", "_")
            found[name] = match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return "\n".join([*lines[:start], *lines[end:]]).strip(), found


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "" if field.default_factory is dataclasses.MISSING else f"  [default: {field.default_factory()}]"
    if field.default is None:
        return "  [optional]"
    shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return f"  [default: {shown}]"


def _field_docs(cls: type[ModulePass]) -> dict[str, str]:
    """The strings written below the fields of a class and of its bases; Python keeps them in the source only."""
    found: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if issubclass(c, ModulePass) and c is not ModulePass]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue  # a class without source has no documented options to show
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = " ".join(text.value.value.split())
    return found
