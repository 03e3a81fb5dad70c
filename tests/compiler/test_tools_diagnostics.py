"""How diagnostics are printed."""

from pathlib import Path

import pytest

from compiler.diagnostics import MAX_SHOWN, MAX_WIDTH, Renderer, SourceCache, excerpt
from dialects.diagnostics import Diagnostic, Location


@pytest.fixture
def renderer() -> Renderer:
    sources = SourceCache()
    sources.add("m.takt", "model m {\n  y = gelo(x)\n}\n")
    return Renderer(sources)


def test_place_line_caret_and_hint(renderer: Renderer) -> None:
    shown = renderer.render(Diagnostic("no operator 'gelo'", Location("m.takt", 2, 7, 4), "did you mean 'gelu'?"))
    assert shown == (
        "m.takt:2:7: error: no operator 'gelo'\n    y = gelo(x)\n        ^^^^\n  hint: did you mean 'gelu'?\n"
    )


def test_without_place_the_tool_is_named(renderer: Renderer) -> None:
    assert renderer.render(Diagnostic("nothing fits")) == "taktc: error: nothing fits\n"


def test_notes_follow_with_their_own_lines(renderer: Renderer) -> None:
    note = Diagnostic("first here", Location("m.takt", 1, 7), severity="note")
    shown = renderer.render(Diagnostic("twice", Location("m.takt", 2, 3), notes=(note,)))
    assert "m.takt:1:7: note: first here\n  model m {\n        ^\n" in shown


def test_a_text_that_is_not_at_hand_is_left_out(renderer: Renderer) -> None:
    assert renderer.render(Diagnostic("bad", Location("gone.takt", 3, 1))) == "gone.takt:3:1: error: bad\n"
    assert renderer.render(Diagnostic("bad", Location("m.takt", 99, 1))) == "m.takt:99:1: error: bad\n"


def test_files_are_read_when_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.takt"
    path.write_text("one\ntwo\n")
    assert "  two\n  ^\n" in Renderer(SourceCache()).render(Diagnostic("bad", Location(str(path), 2, 1)))


def test_device_named_by_a_location_is_not_read() -> None:
    assert SourceCache().line(Location("/dev/zero", 1, 1)) in (None, "")


def test_colour_only_when_asked(renderer: Renderer) -> None:
    diagnostic = Diagnostic("bad", Location("m.takt", 2, 3))
    assert "\x1b" not in renderer.render(diagnostic)
    assert "\x1b[1;31merror:\x1b[0m" in Renderer(renderer.sources, colour=True).render(diagnostic)


def test_many_errors_are_counted_and_cut(renderer: Renderer) -> None:
    shown = renderer.render_all([Diagnostic(f"e{i}") for i in range(MAX_SHOWN + 3)])
    assert shown.count("error: e") == MAX_SHOWN
    assert shown.endswith(f"taktc: {MAX_SHOWN + 3} errors, 3 not shown\n")
    assert renderer.render_all([Diagnostic("a"), Diagnostic("b")]).endswith("taktc: 2 errors\n")


def test_tabs_keep_the_caret_under_the_token() -> None:
    assert excerpt("\tx = y", 6, 1) == ("\tx = y", "\t    ^")


def test_wide_characters_get_two_columns() -> None:
    assert excerpt("模 = q", 5, 1) == ("模 = q", "     ^")
    assert excerpt("模型", 1, 2) == ("模型", "^^^^")


def test_long_lines_are_cut_around_the_caret() -> None:
    line = "a" * 1000 + "HERE" + "b" * 1000
    text, caret = excerpt(line, 1001, 4)
    assert len(text) <= MAX_WIDTH + 6
    start = caret.index("^")
    assert text[start : start + 4] == "HERE"
    assert caret[start:] == "^^^^"


def test_caret_beyond_the_line() -> None:
    assert excerpt("ab", 10, 5) == ("ab", "  ^")
    assert excerpt("", 1, 1) == ("", "^")


def test_control_characters_cannot_steer_the_terminal(renderer: Renderer) -> None:
    text, _ = excerpt("\x1b[2Jx", 5, 1)
    assert "\x1b" not in text
    assert "\x1b" not in renderer.render(Diagnostic("\x1b[31m", Location("\x1b]0;x", 1, 1), "\x07"))
