"""Runs the tools in this process: for fixtures, and for ``.mlir`` and ``.takt`` tests with ``// RUN:`` lines.

A RUN line is a pipeline of ``takt-opt``, ``taktc`` and ``filecheck`` commands. ``%s`` is the file itself,
``%t`` a temporary file of the test; ``not`` before a command expects it to fail; ``2>&1`` joins its
messages to its output; a line that ends with a backslash goes on in the next RUN line. Each RUN line is
one test. Processes would cost a second a line; this costs milliseconds.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parent.parent
"""The repository."""

RUN = re.compile(r"^\s*//\s*RUN:\s*(.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def _main_of(tool: str) -> Callable[[list[str]], int]:
    if tool == "taktc":
        from compiler.taktc import main
    elif tool == "takt-opt":
        from compiler.takt_opt import main
    elif tool in ("filecheck", "FileCheck"):
        return _filecheck
    else:
        raise ValueError(f"a test cannot run '{tool}'; it can run taktc, takt-opt and filecheck")
    return main


def _filecheck(args: list[str]) -> int:
    from filecheck.main import main

    main(["filecheck", *args])
    return 0


def execute(tool: str, args: Sequence[str], stdin: bytes = b"", *, join: bool = False) -> Result:
    """Run a tool in this process; with ``join``, its messages go where its output goes."""
    main = _main_of(tool)
    out = io.StringIO()
    err = out if join else io.StringIO()
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    try:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main(list(args))
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
    finally:
        sys.stdin = before
    return Result(code, out.getvalue(), "" if join else err.getvalue())


# --- fixtures ------------------------------------------------------------------------------


Tool = Callable[..., Result]


@pytest.fixture
def taktc() -> Tool:
    """``taktc(*args, stdin=b"")`` in this process."""
    return lambda *args, stdin=b"": execute("taktc", [str(a) for a in args], stdin)


@pytest.fixture
def takt_opt() -> Tool:
    """``takt_opt(*args, stdin=b"")`` in this process."""
    return lambda *args, stdin=b"": execute("takt-opt", [str(a) for a in args], stdin)


@pytest.fixture
def examples() -> Path:
    """The folder of example models and platforms."""
    return ROOT / "examples"


# --- files with RUN lines ------------------------------------------------------------------


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> RunFile | None:
    if file_path.suffix in (".mlir", ".takt") and RUN.search(file_path.read_text(encoding="utf-8", errors="replace")):
        return RunFile.from_parent(parent, path=file_path)
    return None


class RunFile(pytest.File):
    """A file with RUN lines."""

    def collect(self) -> Iterator[pytest.Item]:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(_joined(match[1] for match in RUN.finditer(text))):
            yield RunLine.from_parent(self, name=f"RUN-{number + 1}", line=line)


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """RUN lines with those that end in a backslash joined to the next."""
    pending = ""
    for line in lines:
        pending += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield pending
            pending = ""
    if pending:
        yield pending


class RunFailure(Exception):
    """A RUN line did not do what it says."""


class RunLine(pytest.Item):
    """One RUN line."""

    def __init__(self, *, line: str, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.line = line

    def runtest(self) -> None:
        with TemporaryDirectory() as folder:
            line = self.line.replace("%s", shlex.quote(str(self.path))).replace("%t", str(Path(folder) / "t"))
            data = b""
            for command in _split(line):
                data = self._run(command, data)

    def _run(self, command: list[str], stdin: bytes) -> bytes:
        join = "2>&1" in command
        words = [word for word in command if word != "2>&1"]
        fails = words[:1] == ["not"]
        if fails:
            words = words[1:]
        result = execute(words[0], words[1:], stdin, join=join)
        if (result.code != 0) != fails:
            wanted = "to fail" if fails else "to succeed"
            raise RunFailure(
                f"expected {wanted}, exit code {result.code}: {shlex.join(words)}\n{result.err}{result.out[-8000:]}"
            )
        return result.out.encode()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        if isinstance(excinfo.value, RunFailure):
            return f"RUN: {self.line}\n{excinfo.value}"
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}::{self.name}"


def _split(line: str) -> Iterator[list[str]]:
    """The commands of a pipeline, as words."""
    command: list[str] = []
    for word in shlex.split(line):
        if word == "|":
            yield command
            command = []
        else:
            command.append(word)
    yield command
