"""Every wrong input of ``bad_input.txt`` gives exactly the diagnostics written under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dialects.diagnostics import Diagnostic, TaktError
from frontend import Source, load

CASES = {
    section.split("\n", 1)[0].strip(): section.split("\n", 1)[1].split("\n---\n")
    for section in (Path(__file__).parent / "bad_input.txt").read_text(encoding="utf-8").split("=== ")[1:]
}


def written(diagnostic: Diagnostic) -> list[str]:
    """A diagnostic as ``bad_input.txt`` has it."""
    place = diagnostic.location
    assert place is not None
    assert place.file == "f.takt"
    lines = [f"{place.line}:{place.column}+{place.length} {diagnostic.message}"]
    if diagnostic.hint:
        lines.append(f"  hint: {diagnostic.hint}")
    for extra in diagnostic.notes:
        assert extra.severity == "note"
        assert extra.location is not None
        lines.append(f"  note: {extra.location.line}:{extra.location.column} {extra.message}")
    return lines


@pytest.mark.parametrize("name", CASES)
def test_diagnostics(name: str) -> None:
    text, expected = CASES[name]
    with pytest.raises(TaktError) as failure:
        load(Source("f.takt", text + "\n"))
    found = [line for diagnostic in failure.value.diagnostics for line in written(diagnostic)]
    assert found == expected.rstrip().split("\n")
