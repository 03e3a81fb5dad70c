"""The files of one compilation and what each of them can see."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from dialects.diagnostics import Diagnostic, TaktError
from dialects.operators import OPERATORS
from frontend import ast
from frontend.parser import parse
from frontend.report import Reporter, note
from frontend.source import LIBRARY_PREFIX, Place, Source, library_file

MAX_IMPORT_DEPTH = 32
"""Files that import one another in a chain."""

OPERATOR_CLASSES = {operator.kind(): operator for operator in OPERATORS}
"""Source name → operator."""


class Unit:
    """A file and the names it can use: its own and those of the files it imports, each with its home."""

    def __init__(self, file: ast.File):
        self.file = file
        self.blocks: dict[str, tuple[ast.Block, Unit]] = {}
        self.constants: dict[str, tuple[ast.Const, Unit]] = {}
        self.accelerators: dict[str, tuple[ast.Accelerator, Unit]] = {}
        self.platforms: dict[str, tuple[ast.Platform, Unit]] = {}
        self.models: dict[str, tuple[ast.Model, Unit]] = {}
        """Models of this file alone."""


class Program:
    """Loads files with their imports, each once, and declares their names."""

    def __init__(self, reporter: Reporter):
        self.reporter = reporter
        self.units: list[Unit] = []
        """Every file read, imported ones first."""
        self._known: dict[str, Unit | None] = {}
        """Identity of a file → its unit; None when it could not be read."""
        self._chain: list[tuple[str, str]] = []
        """(identity, shown name) of the files being read."""

    def load(self, source: Source) -> Unit | None:
        """Read a file given by the user and all it imports; None when it has syntax errors."""
        return self._load(source, _identity(source.name))

    def _load(self, source: Source, identity: str) -> Unit | None:
        self._chain.append((identity, source.name))
        try:
            file = parse(source)
        except TaktError as error:
            self._known[identity] = None
            self._chain.pop()
            for diagnostic in error.diagnostics:
                self.reporter.add(diagnostic)
            return None
        unit = Unit(file)
        for declaration in file.declarations:
            if isinstance(declaration, ast.Import):
                imported = self._import(declaration, source)
                if imported is not None:
                    self._see(unit, imported, declaration)
        for declaration in file.declarations:
            self._declare(unit, declaration)
        self._chain.pop()
        self._known[identity] = unit
        self.units.append(unit)
        return unit

    # --- imports -------------------------------------------------------------------------------

    def _import(self, declaration: ast.Import, source: Source) -> Unit | None:
        written = declaration.path.value
        place = declaration.path.place
        if not written or "\\" in written or os.path.isabs(written):
            self.reporter.error(place, f'cannot import "{written}"', "name a file relative to this one, or takt/...")
            return None
        if written.startswith(LIBRARY_PREFIX):
            if PurePosixPath(written).name != written.removeprefix(LIBRARY_PREFIX):
                self.reporter.error(place, f'the library has no folders: "{written}"')
                return None
            path, shown = library_file(written), written
        elif source.name.startswith(LIBRARY_PREFIX):
            self.reporter.error(place, "a library file imports library files only")
            return None
        else:
            shown = os.path.normpath(os.path.join(os.path.dirname(source.name), written))
            path = Path(shown)
        identity = _identity(str(path))
        for position, (known, _) in enumerate(self._chain):
            if known == identity:
                chain = " -> ".join([name for _, name in self._chain[position:]] + [shown])
                self.reporter.error(place, f"files import one another in a cycle: {chain}")
                return None
        if identity in self._known:
            return self._known[identity]
        if len(self._chain) >= MAX_IMPORT_DEPTH:
            self.reporter.error(place, f"imports nest deeper than {MAX_IMPORT_DEPTH} files")
            return None
        try:
            return self._load(Source.read(path, shown, place.location()), identity)
        except TaktError as error:
            self._known[identity] = None
            for diagnostic in error.diagnostics:
                self.reporter.add(diagnostic)
            return None

    # --- names ---------------------------------------------------------------------------------

    def _see(self, unit: Unit, imported: Unit, declaration: ast.Import) -> None:
        """Make the names of an imported file visible."""
        for kind in ("blocks", "constants", "accelerators", "platforms"):
            names: dict[str, tuple[ast.Block, Unit]] = getattr(unit, kind)
            for name, entry in getattr(imported, kind).items():
                if name in names and names[name][0] is not entry[0]:
                    self.reporter.error(
                        declaration.path.place,
                        f"this import defines '{name}', which another import defines too",
                        notes=self._both(names[name][0].name.place, entry[0].name.place),
                    )
                names.setdefault(name, entry)

    @staticmethod
    def _both(first: Place, second: Place) -> list[Diagnostic]:
        return [note(first, "first defined here"), note(second, "and here")]

    def _declare(self, unit: Unit, declaration: ast.Declaration) -> None:
        match declaration:
            case ast.Import():
                return
            case ast.Block():
                kind, names = "block", unit.blocks
                if declaration.name.name in OPERATOR_CLASSES:
                    message = f"block '{declaration.name.name}' has the name of an operator"
                    self.reporter.error(declaration.name.place, message, "choose another name")
                    return
            case ast.Const():
                kind, names = "constant", unit.constants
            case ast.Accelerator():
                kind, names = "accelerator", unit.accelerators
            case ast.Platform():
                kind, names = "platform", unit.platforms
            case ast.Model():
                kind, names = "model", unit.models
        name = declaration.name
        if name.name in names:
            first = names[name.name][0].name.place
            self.reporter.error(
                name.place, f"{kind} '{name.name}' is already defined", notes=[note(first, "first defined here")]
            )
            return
        names[name.name] = (declaration, unit)  # pyright: ignore[reportArgumentType]


def _identity(name: str) -> str:
    if name.startswith("<"):
        return name
    try:
        return os.path.realpath(name)
    except (OSError, ValueError):
        return name
