"""Text to syntax tree, with recovery: one run reports several independent syntax errors."""

# lark leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gc
import re
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialects.diagnostics import TaktError
from frontend import ast
from frontend.report import Reporter, suggest
from frontend.source import Source
from frontend.units import unknown_unit

if TYPE_CHECKING:
    from lark import Lark, Token
    from lark.exceptions import UnexpectedInput
    from lark.parsers.lalr_interactive_parser import InteractiveParser

MAX_NESTING = 64
"""Levels of nested brackets."""

_NAMES = {
    "NAME": "a name", "STRING": "a text in quotes", "NUMBER": "a number", "MEASURE": "a number with a unit",
    "RBRACE": "'}'", "LBRACE": "'{'", "RPAR": "')'", "LPAR": "'('", "RSQB": "']'", "LSQB": "'['",
    "EQUAL": "'='", "COMMA": "','", "COLON": "':'", "SEMICOLON": "';'", "LESSTHAN": "'<'", "MORETHAN": "'>'",
    "__ANON_0": "'->'", "PLUS": "'+'", "MINUS": "'-'", "STAR": "'*'", "SLASH": "'/'", "PERCENT": "'%'",
    "_X": "'x'", "OUTPUT_BYTES": "'output'", "$END": "the end of the file",
}  # fmt: skip

_EXPRESSION = {"NUMBER", "MEASURE", "NAME", "STRING", "TRUE", "FALSE", "LPAR", "LSQB", "MINUS"}
_STATEMENT = {"_REPEAT", "_INPUT", "_OUTPUT", "_PARAM", "_STATE", "_NEXT"}
_DECLARATION = {"_MODEL", "_BLOCK", "_PLATFORM", "_ACCELERATOR", "_IMPORT"}
_FIELD = {"_PEAK", "_LINK", "ACCELERATORS"}
_CLAUSE = {"TIME", "PARAMS", "MEMORY", "GROUP", "BACKWARD", "WEIGHTS", "OUTPUT_BYTES"}
_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "PERCENT"}

_TOP = r"(?:block|model|platform|accelerator|import)\b[ \t]+[A-Za-z_\"]"
_RESUME_TOP = re.compile(rf"\n(?=[ \t]*(?:{_TOP}|const\b))")
_RESUME_BODY = re.compile(
    rf"\n(?=[ \t]*(?:\}}|{_TOP}|(?:const|param|input|output|state|next|peak|link|measured)\b[ \t]*[A-Za-z0-9_(]"
    r"|repeat\b[^=\n]*\{"
    r"|[A-Za-z_]\w*(?:[ \t]*,[ \t]*[A-Za-z_][A-Za-z0-9_]*)*[ \t]*=(?![^\n]*,[ \t]*\r?(?:\n|\Z))))"
)
_AT_TOP = re.compile(rf"[ \t]*{_TOP}")
_BRACKETS = re.compile(r'//[^\n]*|/\*[\s\S]*?(?:\*/|\Z)|"[^"\n]*"|([(\[{])|([)\]}])')
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")


@contextmanager
def collection_suspended() -> Generator[None]:
    """Suspend the garbage collector: nearly all that is made stays, so its scans only cost time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parse(source: Source) -> ast.File:
    """The syntax tree of a text; raises TaktError with every syntax error found."""
    with collection_suspended():
        return _parse(source)


def _parse(source: Source) -> ast.File:
    reporter = Reporter()
    _check_text(source, reporter)
    lark = _parser()
    from lark.exceptions import UnexpectedInput

    try:
        tree = lark.parse(source.text, on_error=_Recovery(source, reporter))
    except UnexpectedInput:
        tree = None
    reporter.raise_if_failed()
    assert tree is not None, "the parser stopped without an error"
    from frontend.builder import Builder

    file = Builder(source, reporter).build(tree)
    reporter.raise_if_failed()
    return file


@cache
def _parser() -> Lark:
    """The parser; lark is imported and the grammar compiled on first use."""
    from lark import Lark

    grammar = (Path(__file__).parent / "takt.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", propagate_positions=True, maybe_placeholders=True)


def _check_text(source: Source, reporter: Reporter) -> None:
    """Refuse what is not program text at all, and nesting that nobody writes."""
    if control := _CONTROL.search(source.text):
        place = source.here(control.start(), control.end())
        code = ord(control[0])
        reporter.error(place, f"unexpected control character U+{code:04X}", "a takt file is plain text in UTF-8")
        raise reporter.failure()
    depth = 0
    for match in _BRACKETS.finditer(source.text):
        if match[1]:
            depth += 1
            if depth > MAX_NESTING:
                place = source.here(match.start(), match.end())
                reporter.error(place, f"brackets nest deeper than {MAX_NESTING} levels")
                raise reporter.failure()
        elif match[2]:
            depth -= 1
        elif match[0].startswith("/*") and not match[0].endswith("*/"):
            reporter.error(source.here(match.start(), match.start() + 2), "this comment never ends", "close it with */")
            raise reporter.failure()


class _Recovery:
    """Called by the parser at a syntax error: reports it and moves to where a statement may start."""

    def __init__(self, source: Source, reporter: Reporter):
        self.source = source
        self.reporter = reporter
        self._resumed = 0
        """Where parsing went on last; it never goes back beyond."""

    def __call__(self, error: UnexpectedInput) -> bool:
        """Whether the parser is to go on."""
        from lark.exceptions import UnexpectedToken

        parser: InteractiveParser = error.interactive_parser  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(error, UnexpectedToken):
            token: Token = error.token
            start = len(self.source.text) if token.type == "$END" else token.start_pos or 0
            self._report_token(token, start, parser)
            if token.type == "$END":
                return False
        else:
            start = error.pos_in_stream or 0
            self._report_character(start)
        return self._resume(parser, start)

    # --- messages ------------------------------------------------------------------------------

    def _report_token(self, token: Token, start: int, parser: InteractiveParser) -> None:
        end = token.type == "$END"
        if end:
            stop = len(self.source.text.rstrip())
            place = self.source.here(max(stop - 1, 0), stop)
        else:
            place = self.source.here(start, start + len(token))
        accepted = parser.accepts()
        hint = None if end else self._hint(token, start, accepted)
        if end and "RBRACE" in accepted:
            hint = "a '{' is not closed"
        found = "the end of the file" if end else f"'{_short(token)}'"
        line = self.source.text[self.source.text.rfind("\n", 0, start) + 1 : start]
        if token == "x" and "_X" in accepted:
            self.reporter.error(place, "expected a dimension after 'x'")
        elif token.type == "NAME" and re.search(r"(?<!\w)[0-9][0-9_.]*[ \t]*$", line):
            self.reporter.error(place, *unknown_unit(str(token)))
        else:
            self.reporter.error(place, f"expected {_expected(accepted)}, found {found}", hint)

    def _hint(self, token: Token, start: int, accepted: set[str]) -> str | None:
        text = self.source.text
        before = text[:start].rstrip()
        words = [_word(t) for t in accepted if _word(t).isalpha()]
        if re.fullmatch(r"[A-Za-z_]\w*", token):
            if hint := suggest(str(token), words):
                return hint
            word = re.search(r"([A-Za-z_]\w*)\s*$", before)
            if word and (hint := suggest(word[1], [w for w in _ALL_WORDS if w != word[1]])):
                return hint
        last_line = before[before.rfind("\n") + 1 :]
        if re.search(r"[\w)\]][ \t]*//[ \t]*[\w(]", last_line) and ("COMMA" in accepted or "RPAR" in accepted):
            return "'//' starts a comment; write div(a, b) for a division that rounds down"
        if token == "}" and "_MODEL" in accepted:
            return "there is no open '{' here"
        if token == ";":
            return "statements need no ';' between them"
        return None

    def _report_character(self, start: int) -> None:
        character = self.source.text[start]
        place = self.source.here(start, start + 1)
        if character == '"':
            self.reporter.error(place, "this text has no closing quote on its line")
            return
        shown = character if character.isprintable() else f"U+{ord(character):04X}"
        hint = {"'": 'texts are written in double quotes, "..."', "#": "a comment starts with //"}.get(character)
        self.reporter.error(place, f"unexpected character '{shown}'", hint)

    # --- recovery ------------------------------------------------------------------------------

    def _resume(self, parser: InteractiveParser, start: int) -> bool:
        """Unwind to the innermost open body and skip to the next line that looks like a statement."""
        text = self.source.text
        inside = self._unwind(parser, top=False, end=text.find("\n", start))
        line = text.rfind("\n", 0, start)
        search_from = max(line if not text[line + 1 : start].strip() else start, self._resumed)
        position = _next_start(_RESUME_BODY if inside else _RESUME_TOP, text, search_from)
        if position is None:
            return False
        if inside and _AT_TOP.match(text, position):
            self._unwind(parser, top=True)
        self._resumed = position
        state = parser.lexer_thread.state
        assert state is not None
        state.line_ctr.char_pos = position
        state.last_token = None
        return True

    def _unwind(self, parser: InteractiveParser, top: bool, end: int = -1) -> bool:
        """Pop to a state where a statement (or with ``top`` a declaration) may start; True inside a body.

        The body of a link counts when it goes on after ``end``, where the line ends.
        """
        state = parser.parser_state
        states = state.parse_conf.states
        while len(state.state_stack) > 1:
            if not top and any(_can_follow(states, state.state_stack, t) for t in ("_REPEAT", "_PEAK", "_LINK")):
                return True
            if not top and end >= 0 and _can_follow(states, state.state_stack, "_MEASURED"):
                opened = next(t for t in reversed(state.value_stack) if getattr(t, "type", None) == "LBRACE")
                if not _closed(self.source.text[opened.start_pos : end]):
                    return True
            if _can_follow(states, state.state_stack, "_MODEL"):
                return False
            state.state_stack.pop()
            state.value_stack.pop()
        return False


def _closed(text: str) -> bool:
    """Whether the brace that begins a text is closed in it."""
    return 0 in accumulate((c == "{") - (c == "}") for c in text)


def _next_start(pattern: re.Pattern[str], text: str, start: int) -> int | None:
    """The next line that looks like a statement outside the braces and brackets skipped on the way."""
    depth, reached = 0, start
    for match in pattern.finditer(text, start):
        skipped = text[reached : match.start()]
        depth, reached = depth + skipped.count("{") - skipped.count("}"), match.start()
        if depth > 0 and not (text[match.end()].isalpha() and _AT_TOP.match(text, match.end())):
            continue
        line = text[match.end() : text.find("\n", match.end())]
        depths = accumulate((c in "([") - (c in ")]") for c in line)
        if min(depths, default=0) >= 0:
            return match.end()
    return None


def _can_follow(states: Any, stack: list[Any], terminal: str) -> bool:
    """Whether the parser would take ``terminal`` next: its tables alone also list what a later state refuses."""
    from lark.parsers.lalr_analysis import Shift

    stack = list(stack)
    while True:
        action = states[stack[-1]].get(terminal)
        if action is None:
            return False
        if action[0] is Shift:
            return True
        rule = action[1]
        if rule.expansion:
            del stack[-len(rule.expansion) :]
        stack.append(states[stack[-1]][rule.origin.name][1])


_ALL_WORDS = (
    "import", "const", "accelerator", "platform", "block", "model", "peak", "link", "measured", "accelerators", "param",
    "input", "output", "state", "next", "distance", "repeat", "carry", "tensor", "time", "params", "memory",
    "group", "backward", "weights",
)  # fmt: skip


def _word(terminal: str) -> str:
    """How a terminal is written, for the words of the language."""
    return "output" if terminal == "OUTPUT_BYTES" else terminal.lstrip("_").lower()


def _short(token: str) -> str:
    line = token.splitlines()[0] if token else token
    return line if len(line) <= 40 else line[:37] + "..."


def _expected(accepted: set[str]) -> str:
    """What may stand here, in a few words."""
    left = set(accepted)
    parts: list[str] = []
    if left >= _STATEMENT:
        parts.append("a statement")
        left -= _STATEMENT | {"_CONST", "NAME"} | _CLAUSE | _OPERATORS
    elif left >= _DECLARATION:
        parts.append("a declaration (import, const, accelerator, platform, block or model)")
        left -= _DECLARATION | {"_CONST", "$END"}
    elif left >= _EXPRESSION - {"NAME"} or left >= _EXPRESSION:
        parts.append("a value")
        left -= _EXPRESSION
    closing = left - _OPERATORS - {"_X", "LPAR"}
    if closing or parts:
        left = closing | ({"_X"} & left if "MORETHAN" not in left and not parts else set())
    order = sorted(left, key=lambda t: (t.startswith("$"), t in {"RBRACE", "RPAR", "RSQB"}, t))
    parts += [_NAMES.get(t) or f"'{_word(t)}'" for t in order]
    if len(parts) > 5:
        parts = parts[:5]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " or " + parts[-1] if parts else "nothing more"


def parse_expression(text: str, name: str) -> ast.Expr:
    """Parse the text of one constant, such as a value given with ``--set``; raises TaktError."""
    file = parse(Source(name, f"const value = {text}"))
    if len(file.declarations) != 1 or not isinstance(file.declarations[0], ast.Const):
        raise TaktError("not one value")
    return file.declarations[0].value
