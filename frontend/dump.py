"""The syntax tree as indented text, for ``--emit ast``."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any

from frontend import ast


def show_ast(file: ast.File) -> str:
    """One node a line, children indented, each with its line and column."""
    lines = [f"File {file.source.name}"]
    for declaration in file.declarations:
        _show(declaration, "", 1, lines)
    return "\n".join(lines) + "\n"


def _show(node: Any, label: str, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    if isinstance(node, tuple):
        if node:
            lines.append(f"{indent}{label}")
            for item in node:  # pyright: ignore[reportUnknownVariableType]
                _show(item, "", depth + 1, lines)
        return
    prefix = f"{label}: " if label else ""
    if not is_dataclass(node):
        lines.append(f"{indent}{prefix}{_scalar(node)}")
        return
    if isinstance(node, ast.Ident):
        lines.append(f"{indent}{prefix}{node.name}{_place(node)}")
        return
    children = [(f.name, getattr(node, f.name)) for f in fields(node) if f.name != "place"]
    inline = [(n, v) for n, v in children if not is_dataclass(v) and not isinstance(v, tuple) and v is not None]
    words = "".join(f" {_scalar(v)}" for _, v in inline)
    lines.append(f"{indent}{prefix}{type(node).__name__}{words}{_place(node)}")
    for name, value in children:
        if is_dataclass(value) or isinstance(value, tuple):
            _show(value, name, depth + 1, lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Fraction):
        return f"{float(value):g}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _place(node: Any) -> str:
    place = getattr(node, "place", None)
    if place is None:
        return ""
    at = place.location()
    return f" @{at.line}:{at.column}"
