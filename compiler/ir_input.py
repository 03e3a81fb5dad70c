"""Reads ``.mlir`` text so that every operation has a source position and every mistake a clean message.

An operation written without ``loc(...)`` gets the position of its first character, as MLIR's own tools
do. One written with a location, even ``loc(unknown)``, keeps it. A text printed with locations states
one for every operation, so printing and reading it again changes nothing; a text printed without
locations does not show them, so neither does that.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from xdsl.context import Context
from xdsl.dialects.builtin import FileLineColLoc, IntAttr, LocationAttr, ModuleOp, StringAttr
from xdsl.ir import Attribute, Operation, SSAValue, TypeAttribute
from xdsl.parser import AttrParser, Parser, ParserState, UnresolvedOperand
from xdsl.utils.exceptions import MultipleSpansParseError, ParseError, VerifyException
from xdsl.utils.lexer import Input, Span
from xdsl.utils.mlir_lexer import MLIRLexer

from dialects.diagnostics import Diagnostic, Location, TaktError

UNDEFINED = "values used but not defined"
"""How xDSL's message about undefined values starts; it comes at the end of the file, without the uses."""

LEFTOVER = "Could not parse entire input!"
"""xDSL's message where an operation should begin."""


class LineMap:
    """Character offsets of one text as lines and columns, both from 1."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self._starts = [0]
        while (end := text.find("\n", self._starts[-1])) >= 0:
            self._starts.append(end + 1)

    def place(self, start: int) -> tuple[int, int]:
        """Line and column of an offset."""
        line = bisect_right(self._starts, start)
        return line, start - self._starts[line - 1] + 1

    def location(self, start: int, end: int) -> Location:
        """The place of ``[start, end)``; its caret ends with the first line."""
        line, column = self.place(start)
        newline = self.text.find("\n", start)
        stop = min(end, newline if newline >= 0 else len(self.text))
        return Location(self.name, line, column, max(1, stop - start))


class LinearLexer(MLIRLexer):
    """xDSL's lexer, with a pattern for strings that does not backtrack.

    xDSL 0.74 repeats a repetition there, so that a string nobody closes takes time exponential in its length.
    """

    _unescaped_characters_regex = re.compile(r'"(?:[^"\\\n\v\f]++|\\(?:["nt\\]|[0-9A-Fa-f]{2}))*+"')


class LocatingParser(Parser):
    """xDSL's parser, noting where each operation starts and where each value is first used."""

    def __init__(self, ctx: Context, lines: LineMap) -> None:
        self.lines = lines
        self.first_uses: dict[str, Span] = {}
        self.defined: set[str] = set()
        self._file = StringAttr(lines.name)
        self._after_location = -1  # where the token behind the last location starts
        # Parser.__init__ would make its own lexer; the rest of it is here.
        AttrParser.__init__(self, ParserState(LinearLexer(Input(lines.text, lines.name))), ctx)
        self.ssa_values = {}
        self.blocks = {}
        self.forward_block_references = defaultdict(list)
        self.forward_ssa_references = {}

    def parse_operation(self) -> Operation:
        start = self._current_token.span.start
        op = super().parse_operation()
        if self._after_location != self._current_token.span.start:
            line, column = self.lines.place(start)
            op.location = FileLineColLoc(self._file, IntAttr(line), IntAttr(column))
        return op

    def parse_optional_location(self) -> LocationAttr | None:
        location = super().parse_optional_location()
        if location is not None:
            self._after_location = self._current_token.span.start
        return location

    def _parse_optional_integer_or_float_type(self) -> TypeAttribute | None:
        # xDSL takes any width and computes the range of values, which needs as many bits of memory.
        if re.fullmatch(r"[su]?i0*[1-9]\d{7,}", self._current_token.text):
            self.raise_error("an integer type is less than 10000000 bits wide")
        return super()._parse_optional_integer_or_float_type()

    def resolve_operand(self, operand: UnresolvedOperand, type: Attribute) -> SSAValue:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.first_uses.setdefault(operand.operand_name, operand.span)
        return super().resolve_operand(operand, type)

    def _register_ssa_definition(self, name: str, values: list[SSAValue], span: Span) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.defined.add(name)
        super()._register_ssa_definition(name, values, span)

    def _get_op_by_name(self, name: str) -> type[Operation]:
        found = self.ctx.get_optional_op(name, dialect_stack=self._parser_state.dialect_stack)
        if found is not None:
            return found
        end = self._current_token.span.start  # the name is the token before
        start = max(self.lines.text.rfind(name, 0, end), 0)
        known = [op.name for dialect in self.ctx.loaded_dialects for op in dialect.operations]
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else None
        location = self.lines.location(start, start + len(name))
        raise TaktError(Diagnostic(f"there is no operation '{name}'", location, hint))

    def where(self) -> Location:
        """The token now being read."""
        span = self._current_token.span
        return self.lines.location(span.start, span.end)

    def undefined(self) -> Iterator[Diagnostic]:
        """One diagnostic for every value that is used and never defined."""
        for name in self.forward_ssa_references:
            span = self.first_uses[name]
            close = get_close_matches(name, self.defined, n=1)
            hint = f"did you mean '%{close[0]}'?" if close else None
            yield Diagnostic(f"value '%{name}' is not defined", self.lines.location(span.start, span.end), hint)


def decode(data: bytes, name: str) -> str:
    """``data`` as UTF-8 text; TaktError at the first byte that is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = data[: error.start].decode("utf-8-sig", errors="replace")
        location = LineMap(good, name).location(len(good), len(good) + 1)
        raise TaktError(
            Diagnostic(f"not UTF-8 text: byte 0x{data[error.start]:02x}", location, "IR is read as text")
        ) from None


def parse_ir(ctx: Context, text: str, name: str, *, implicit_module: bool = True) -> ModuleOp:
    """Parse IR text in the custom or the generic form.

    Raises TaktError with a place for anything that is wrong with the text; operations are not verified
    yet, beyond what parsing checks.
    """
    lines = LineMap(text, name)
    if not text.strip():
        raise TaktError(Diagnostic("the file is empty", Location(name, 1, 1), "expected IR, e.g. builtin.module"))
    with _clean_errors(lines) as state:
        parser = LocatingParser(ctx, lines)
        state.append(parser)
        return parser.parse_module(implicit_module)


@contextmanager
def _clean_errors(lines: LineMap) -> Iterator[list[LocatingParser]]:
    """Turns whatever the parser raises into a TaktError. The body appends the parser once it exists."""
    state: list[LocatingParser] = []

    def here() -> Location:
        return state[0].where() if state else Location(lines.name, 1, 1)

    try:
        yield state
    except ParseError as error:
        if state and error.msg.startswith(UNDEFINED):
            raise TaktError(list(state[0].undefined())) from error
        raise TaktError(_from_parse_error(error, lines)) from error
    except RecursionError as error:
        raise TaktError(Diagnostic("nested too deeply", here())) from error
    except VerifyException as error:
        # An attribute that refuses its parameters while it is being built knows no place.
        raise TaktError(Diagnostic(_sentence(str(error)), here())) from error
    except MemoryError as error:  # e.g. a dense literal of 10^12 equal elements
        raise TaktError(Diagnostic("needs more memory than there is", here())) from error
    except TaktError:
        raise
    except Exception as error:
        # xDSL's parser has more ways to fail on odd text than ParseError: integers of thousands of
        # digits, dense literals of the wrong length, bad escapes. All of them are faults of the text.
        reason = str(error).split("\n")[0] or type(error).__name__
        if "integer string conversion" in reason:
            reason = "an integer of thousands of digits"
        raise TaktError(Diagnostic(f"cannot be read as IR here: {reason}", here())) from error


def _from_parse_error(error: ParseError, lines: LineMap) -> Diagnostic:
    notes: tuple[Diagnostic, ...] = ()
    if isinstance(error, MultipleSpansParseError):
        notes = tuple(
            Diagnostic(
                _sentence(message or error.ref_text or "see here"),
                lines.location(span.start, span.end),
                severity="note",
            )
            for span, message in error.refs
        )
    message = "expected an operation" if error.msg == LEFTOVER else _sentence(error.msg)
    return Diagnostic(message, lines.location(error.span.start, error.span.end), notes=notes)


def _sentence(message: str) -> str:
    """xDSL's messages start with a capital or not and end with a full stop or not; ours do neither."""
    message = " ".join(message.split()).rstrip(".!:")
    return message[:1].lower() + message[1:] if message[1:2].islower() else message
