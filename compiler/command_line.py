"""What both tools share on the command line: usage errors, exit codes, output files.

Exit codes: 0 done, 1 the input is wrong, a pass failed or there is no schedule, 2 the command line is
wrong, 130 interrupted. Imports nothing heavy: ``--help`` and ``--version`` come through here.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from fractions import Fraction
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dialects.units import SIZES, TIMES

if TYPE_CHECKING:
    from compiler.diagnostics import SourceCache
    from dialects.diagnostics import Diagnostic

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """The command line asks for something that does not exist or does not fit together."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest of ``names``, or nothing."""
    close = get_close_matches(name, list(names), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class ArgumentParser(argparse.ArgumentParser):
    """argparse that suggests the nearest option or choice, and takes no abbreviations."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            option = match[1].split("=")[0]
            message += did_you_mean(option, [o for a in self._actions for o in a.option_strings])
        elif match := re.match(r"argument .*: invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += did_you_mean(match[1], re.findall(r"[\w-]+", match[2]))
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: error: {message}\n  hint: {self.prog} --help shows all options\n")


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    return _integer(text, 1, "a positive integer")


def natural(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    return _integer(text, 0, "an integer of at least 0")


def _integer(text: str, least: int, expected: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or value >= 2**63:
        raise argparse.ArgumentTypeError(f"expected {expected}, got '{text}'")
    return value


def seconds(text: str) -> float:
    """An argparse type: a positive number of seconds."""
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got '{text}'")
    return value


def duration(text: str) -> int:
    """An argparse type: a time with its unit, in whole ns."""
    return _quantity(text, {unit: scale for unit, scale in TIMES}, "a time", ("ms", "30ms"))


def size(text: str) -> int:
    """An argparse type: a size with its unit, in whole bytes."""
    units = {f"{letter}B": 1000**power for power, letter in enumerate(("", "K", "M", "G", "T"))}
    return _quantity(text, units | {unit: scale for unit, scale in SIZES}, "a size", ("GiB", "60GiB"))


def _quantity(text: str, units: Mapping[str, int], kind: str, example: tuple[str, str]) -> int:
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected {kind} such as {example[1]}, got '{text}'")
    number, unit = match.groups()
    if not unit:
        raise argparse.ArgumentTypeError(f"'{text}' has no unit: write {number}{example[0]}, or {', '.join(units)}")
    if unit not in units:
        raise argparse.ArgumentTypeError(
            f"'{text}' has an unknown unit: units are {', '.join(units)}{did_you_mean(unit, units)}"
        )
    value = int(Fraction(number) * units[unit])
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected {kind} such as {example[1]}, got '{text}'")
    return value


def share(text: str) -> float:
    """An argparse type: a share of at least 0 and below 1, written as a percentage or a fraction."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if value >= 1 and not text.endswith("%"):
        raise argparse.ArgumentTypeError(f"'{text}' is {value:.0%}: write {text}%, or a fraction below 1")
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share such as 1% or 0.01, got '{text}'")
    return value


def amount(text: str) -> float:
    """An argparse type: a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"expected a positive number, got '{text}'")
    return value


def names_of(known: Sequence[str], least: int) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: at least ``least`` of the names ``known``, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        for name in names:
            if name not in known:
                message = f"there is no '{name}'{did_you_mean(name, known)}; choose from {', '.join(known)}"
                raise argparse.ArgumentTypeError(message)
            if names.count(name) > 1:
                raise argparse.ArgumentTypeError(f"'{name}' is given twice")
        if len(names) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least} of {', '.join(known)}, got '{text}'")
        return names

    return parse


def assignment(text: str) -> tuple[str, str]:
    """An argparse type: ``name=value``."""
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"expected name=value, got '{text}'")
    return name, value


def write_output(path: str | None, text: str) -> None:
    """Write the result: to standard output (no path, or ``-``), or to a file that appears whole or not at all.

    Raises TaktError when the file cannot be written.
    """
    if path is None or path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    from dialects.diagnostics import Diagnostic, TaktError

    try:
        replace_file(Path(path), text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TaktError(Diagnostic(f"cannot write '{path}': {reason}")) from None


def check_output(path: str | None) -> None:
    """Raise TaktError when ``path`` can surely not be written; asked before a long compilation."""
    if path is None or path == "-":
        return
    from dialects.diagnostics import Diagnostic, TaktError

    reason = None
    try:
        folder = os.path.dirname(os.path.realpath(path))
    except (OSError, ValueError) as error:  # a null byte
        raise TaktError(Diagnostic(f"cannot write '{path}': {error}")) from None
    if os.path.isdir(path):
        reason = "it is a directory"
    elif not os.path.isdir(folder):
        reason = f"there is no directory '{os.path.dirname(path) or folder}'"
    if reason:
        raise TaktError(Diagnostic(f"cannot write '{path}': {reason}"))


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` beside ``path`` and move it there. A link is followed; a device is written directly."""
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_file():
        real.write_text(text, encoding="utf-8")
        return
    handle, temporary = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, real.stat().st_mode & 0o7777 if real.exists() else 0o666 & ~_umask())
        os.replace(temporary, real)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def print_diagnostics(diagnostics: Iterable[Diagnostic], sources: SourceCache, tool: str) -> None:
    """Render diagnostics on standard error."""
    from compiler.diagnostics import Renderer, wants_colour

    renderer = Renderer(sources, tool=tool, colour=wants_colour(sys.stderr))
    sys.stderr.write(renderer.render_all(list(diagnostics)))


def guarded(tool: str, debug: bool, sources: SourceCache, body: Callable[[], int]) -> int:
    """Run ``body`` and turn everything it may raise into a message and an exit code.

    With ``debug``, the traceback is printed as well.
    """
    from compiler.diagnostics import Renderer
    from dialects.diagnostics import Diagnostic, TaktError

    def failed(diagnostics: Iterable[Diagnostic], code: int = FAILED) -> int:
        if debug:
            import traceback

            traceback.print_exc()
        print_diagnostics(diagnostics, sources, tool)
        return code

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files need not be text the terminal can show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = body()
        sys.stdout.flush()
        return code
    except TaktError as error:
        return failed(error.diagnostics)
    except UsageError as error:
        return failed([Diagnostic(str(error))], USAGE)
    except KeyboardInterrupt:
        sys.stderr.write(f"{tool}: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _abandon_stdout()
        return FAILED
    except OSError as error:  # reading and writing of files say so themselves: this is standard output
        _abandon_stdout()
        return failed([Diagnostic(f"cannot write the output: {error.strerror or error}")])
    except RecursionError:
        return failed([Diagnostic("the input is nested too deeply")])
    except MemoryError:
        return failed([Diagnostic("out of memory")])
    except Exception as error:
        if debug:
            raise
        text = f"internal error: {type(error).__name__}: {error}"
        hint = "this is a fault of the compiler, not of the input; --debug shows where it happened"
        sys.stderr.write(Renderer(sources, tool=tool).render(Diagnostic(text.split("\n")[0], hint=hint)))
        return FAILED


def _abandon_stdout() -> None:
    """Send what is left in the buffer of standard output nowhere; Python would try again at exit, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
