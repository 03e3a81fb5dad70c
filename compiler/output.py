"""Printing of IR, dumps of phases, and the table of timings."""

from __future__ import annotations

import re
import resource
import shlex
import sys
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp
from xdsl.printer import Printer

from compiler.command_line import replace_file
from compiler.pipeline import Observer
from dialects.diagnostics import Diagnostic, TaktError
from dialects.structure import LEVELS, find_graph, reaches


def print_ir(module: ModuleOp, *, generic: bool = False, locations: bool = False) -> str:
    """The text of a module, in the custom or the generic form."""
    stream = StringIO()
    Printer(stream=stream, print_generic_format=generic, print_debuginfo=locations).print_op(module)
    return stream.getvalue() + "\n"


def file_stem(text: str) -> str:
    """``text`` reduced to what is safe in a file name."""
    return re.sub(r"[^\w.-]+", "_", text).strip(".") or "model"


@dataclass
class PhaseDumps:
    """Writes the IR after each phase to ``folder``, in files that can be compiled on from.

    ``options`` are those of the command line that the rest of the compilation depends on; they are
    repeated in the first line of each file, a comment with the command that goes on from there.
    """

    folder: Path
    options: list[str]
    passes: bool = False
    """Whether a list of passes runs instead of the pipeline: files are then numbered and named by pass."""
    _count: int = 0

    def write(self, step: str, module: ModuleOp) -> None:
        """Write the module that ``step`` left; TaktError when the file cannot be written."""
        graph = find_graph(module)
        level = graph.level.data if graph is not None else "unknown"
        if self.passes and self._count:
            number, label = self._count, step.split("{")[0]
        else:
            number, label = (LEVELS.index(level) if level in LEVELS else 0), level
        self._count += 1
        stem = file_stem(graph.sym_name.data) if graph is not None else "model"
        path = self.folder / f"{stem}.{number}.{label}.mlir"
        last = level in LEVELS and reaches(level, "scheduled")
        go_on = ["--emit", "summary"] if last else self.options
        if "--recompute" in go_on and level != LEVELS[0]:  # what is computed again, if anything, is in the graph
            place = go_on.index("--recompute")
            go_on = go_on[:place] + go_on[place + 2 :]
        command = shlex.join(["taktc", str(path), "--compile-from", level, *go_on])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, f"// {command}\n" + print_ir(module, locations=True))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TaktError(Diagnostic(f"cannot write '{path}': {reason}")) from None


def print_after(step: str, module: ModuleOp) -> None:
    """Print the module on stderr below a comment that names the step; the whole is IR again."""
    sys.stderr.write(f"// -----// IR Dump After {step} //----- //\n{print_ir(module, locations=True)}")


@dataclass
class Timing:
    """Wall time of each phase, and the peak memory of the process when it ended."""

    rows: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])
    _verifying: float = 0.0

    def note(self, step: str, seconds: float) -> None:
        """Record a phase that just ended."""
        self.rows.append((step.split("{")[0], seconds, peak_mib()))

    def note_verified(self, seconds: float) -> None:
        """Add to the time of verification, one row for all phases."""
        self._verifying += seconds

    def table(self) -> str:
        """A table of all phases and their sum."""
        rows = [*self.rows, ("verify", self._verifying, peak_mib())]
        total = sum(seconds for _, seconds, _ in rows)
        width = max(len(name) for name, _, _ in [*rows, ("phase", 0, 0)])
        lines = [f"{'phase':{width}}  {'wall s':>8}  {'share':>6}  {'peak MiB':>9}"]
        for name, seconds, memory in [*rows, ("total", total, peak_mib())]:
            share = seconds / total if total else 0.0
            lines.append(f"{name:{width}}  {seconds:8.3f}  {share:6.1%}  {memory:9.1f}")
        return "\n".join(lines) + "\n"


def peak_mib() -> float:
    """The most memory this process has held so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass
class Reporter(Observer):
    """What the tools do after every step: take its time, print the IR, write a dump."""

    timing: Timing
    print_ir: bool = False
    dumps: PhaseDumps | None = None

    def ran(self, step: str, module: ModuleOp, seconds: float) -> None:
        self.timing.note(step, seconds)
        if self.print_ir:
            print_after(step, module)
        if self.dumps is not None:
            self.dumps.write(step, module)

    def verified(self, seconds: float) -> None:
        self.timing.note_verified(seconds)
