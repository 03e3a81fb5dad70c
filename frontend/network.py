"""What a platform declaration says about its network: words such as ``ring``, sides of a torus, measured tables."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from dialects.links import TOPOLOGIES
from dialects.measured import COLLECTIVES, MeasuredAttr
from dialects.structure import TRANSFERS
from frontend import ast
from frontend.evaluate import Lookup, Problem, amount, evaluate, show_number, whole
from frontend.report import choices, suggest
from frontend.units import SIZE, TIME

WORDS: Mapping[str, tuple[str, ...]] = {
    "topology": TOPOLOGIES,
    "duplex": ("full", "half"),
    "sharing": ("exclusive", "shared"),
    "transfers": TRANSFERS,
}
"""Fields of links and platforms whose value is a word, and the words. The first one is the default."""

MOST_LINKS = 2**20


def constants_of(field: ast.Field) -> tuple[ast.Expr, ...]:
    """The parts of a field's value that are constants: not the words, and none where the field is misspelt too."""
    value, name = field.value, field.name.name
    if isinstance(value, ast.Name):
        known = any(value.name in words for words in WORDS.values())
        return () if name in WORDS or (known and suggest(name, WORDS)) else (value,)
    if isinstance(value, ast.Call) and (name in WORDS or value.callee.name in TOPOLOGIES):
        return tuple(a.value for a in value.arguments)
    return (value,)


def word(field: ast.Field) -> str:
    """The word that a field has for its value; raises Problem."""
    name, value = field.name.name, field.value
    known = WORDS[name]
    listed = ", ".join(known[:-1]) + " or " + known[-1]
    if isinstance(value, ast.Text) and value.value in known:
        raise Problem(value.place, f"'{name}' is a word, not a text", f"write {name} = {value.value}")
    if isinstance(value, ast.Call):
        raise Problem(value.place, f"'{name}' must be {listed}", "only a torus has numbers after it: torus(4, 4)")
    if not isinstance(value, ast.Name):
        raise Problem(value.place, f"'{name}' must be {listed}")
    if value.name not in known:
        raise Problem(value.place, f"'{name}' must be {listed}, got '{value.name}'", suggest(value.name, known))
    return value.name


def topology(field: ast.Field, scope: Lookup, members: int | None) -> tuple[str, tuple[int, ...]]:
    """The topology of a link and the sides of a torus, of ``members`` where their number is known; raises Problem."""
    value = field.value
    example = f"write topology = torus({', '.join(map(str, _sides(members)))})"
    if isinstance(value, ast.Call) and value.callee.name == "torus":
        for argument in value.arguments:
            if argument.name is not None:
                raise Problem(argument.name.place, "the sides of a torus have no names", example)
        sides = tuple(
            whole(evaluate(a.value, scope), a.value.place, "the side of a torus", 1, MOST_LINKS)
            for a in value.arguments
        )
        if not sides:
            raise Problem(value.place, "a torus needs the lengths of its sides", example)
        if members is not None and prod(sides) != members:
            product = " * ".join(map(str, sides))
            shown = f"{product} = {show_number(prod(sides))}" if len(sides) > 1 else product
            raise Problem(value.place, f"the sides of this torus multiply to {members} members, got {shown}", example)
        return "torus", sides
    if isinstance(value, ast.Call) and value.callee.name in TOPOLOGIES:
        raise Problem(value.place, f"only a torus has sides, '{value.callee.name}' has none")
    if isinstance(value, ast.Call):
        hint = choices(value.callee.name, TOPOLOGIES, "topologies")
        raise Problem(value.callee.place, f"unknown topology '{value.callee.name}'", hint)
    found = word(field)
    if found == "torus":
        raise Problem(value.place, "a torus needs the lengths of its sides", example)
    return found, ()


def _sides(members: int | None) -> tuple[int, int]:
    """Two sides that multiply to ``members``, as nearly equal as can be."""
    if members is None or members > MOST_LINKS:
        return 4, 4
    side = next(s for s in range(int(members**0.5), 0, -1) if members % s == 0)
    return side, members // side


def measured(node: ast.Measured, scope: Lookup, span: tuple[int, int] | None) -> MeasuredAttr:
    """The measured times of a collective; raises Problem.

    ``span``, where it is known, is the size of the level inside the link and that of the link: collectives on more
    accelerators than the first and no more than the second run on this link.
    """
    pattern = node.pattern.name
    if pattern not in COLLECTIVES:
        hint = suggest(pattern, COLLECTIVES) or f"collectives are {', '.join(COLLECTIVES)}"
        if pattern in ("send", "send_recv", "transfer"):
            hint = "transfers between two sets are priced by the latency and bandwidth of the link"
        raise Problem(node.pattern.place, f"unknown collective '{pattern}'", hint)
    group = whole(evaluate(node.group, scope), node.group.place, "the number of accelerators", 2)
    if span is not None and not span[0] < group <= span[1]:
        least = max(2, span[0] + 1)
        raise Problem(
            node.group.place,
            f"collectives on {group} accelerators do not run on this link, those on {least} to {span[1]} do",
        )
    table: dict[int, int] = {}
    for key, value in node.table.entries:
        size = amount(evaluate(key, scope), key.place, "a measured size", SIZE, 1)
        if size in table:
            raise Problem(key.place, f"the time for {size} bytes is given twice")
        table[size] = amount(evaluate(value, scope), value.place, "a measured time", TIME)
    if len(table) < 2:
        hint = f"write measured {pattern} on {group} {{64 KiB: 30us, 1 MiB: 55us}}"
        raise Problem(node.table.place, "a measured table needs two sizes or more", hint)
    return MeasuredAttr.make(pattern, group, table)
