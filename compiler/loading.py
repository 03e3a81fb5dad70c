"""Reads the input of both tools: a ``.takt`` model or ``.mlir`` IR, from a file or from standard input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from compiler.diagnostics import SourceCache
from compiler.ir_input import decode, parse_ir
from dialects.diagnostics import Diagnostic, TaktError
from frontend.source import Source

Format = Literal["takt", "mlir"]

_MODEL_START = re.compile(
    r"(\s|//[^\n]*\n|/\*.*?\*/)*(import|const|accelerator|platform|block|model)\b(?!\s*\.)", re.DOTALL
)
_IR_START = re.compile(r'(\s|//[^\n]*\n)*("|%|#|!|\{-#|(builtin\.)?module\b|takt\.)')
"""How a model and how IR begin, after comments."""


@dataclass(frozen=True)
class Input:
    """A text, its name in messages, and what it is written in."""

    name: str
    text: str
    format: Format

    def source(self) -> Source:
        """As the front end wants it."""
        return Source(self.name, self.text)


def read_input(path: str, sources: SourceCache, format: Format | None = None, *, unclear: Format = "takt") -> Input:
    """Read ``path`` (``-`` is standard input) and decide what it is written in.

    A file says so by its extension; standard input by its first words, and it is taken for ``unclear`` when
    they do not tell; ``format`` overrides both.
    Raises TaktError when it cannot be read.
    """
    if path != "-" and format is None:
        extension = os.path.splitext(path)[1]
        if extension not in (".takt", ".mlir"):
            if not os.path.exists(path):
                Source.read(path)  # a missing file is the more useful message
            kind = f"extension '{extension}'" if extension else "no extension"
            message = f"'{path}' has {kind}; expected .takt (a model) or .mlir (IR)"
            raise TaktError(Diagnostic(message, hint="--input-format says what it is"))
        format = "takt" if extension == ".takt" else "mlir"
    if format == "takt":
        source = Source.read(path)
        name, text = source.name, source.text
    else:
        name = "<stdin>" if path == "-" else path
        text = decode(_read_bytes(path), name)
    sources.add(name, text)
    if format is None:
        format = "mlir" if _IR_START.match(text) else "takt" if _MODEL_START.match(text) else unclear
    return Input(name, text, format)


def _read_bytes(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        Source.read(path)  # says so, and suggests a file with nearly that name
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TaktError(Diagnostic(f"cannot read '{path}': {reason}")) from None


def load_module(
    context: Context,
    given: Input,
    *,
    sources: SourceCache,
    platform: str | None = None,
    overrides: Mapping[str, str] | None = None,
    model: str | None = None,
    implicit_module: bool = True,
) -> ModuleOp:
    """The module of an input: a model is compiled to level 0, IR is parsed (and not verified yet).

    ``platform`` is the path of a ``.takt`` file. Raises TaktError with every mistake found.
    """
    if given.format == "takt":
        from frontend import load

        machine = Source.read(platform) if platform is not None else None
        if machine is not None:
            sources.add(machine.name, machine.text)
        return load(given.source(), platform=machine, overrides=overrides or {}, model=model)
    asked = {"--platform": platform, "--set": overrides, "--model": model}
    for option, value in asked.items():
        if value:
            message = f"{option} has no effect on '{given.name}': in IR, the model is expanded and its platform chosen"
            raise TaktError(Diagnostic(message, hint="compile the .takt model again"))
    return parse_ir(context, given.text, given.name, implicit_module=implicit_module)
