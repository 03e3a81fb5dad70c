"""The README and the page of outputs tell the truth: their commands run, and print what they show.

Blocks of code by language: ``console`` holds commands (``$ ...``) and exactly what they print, ``sh``
commands alone, ``takt`` models that must load, ``python`` programs. Of commands, those of takt's tools
run here, in order, in one scratch folder; what follows a pipe runs in the shell.

When the compiler's output changes, ``TAKT_UPDATE_README=1 pytest tests/test_readme.py`` writes the
new output and pictures into the README and ``docs/``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from compiler import takt_opt, taktc
from frontend import Source, load

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OUTPUTS = ROOT / "docs" / "outputs.md"
UPDATE = "TAKT_UPDATE_README" in os.environ
TOOLS = {"taktc": taktc.main, "takt-opt": takt_opt.main}
ELSEWHERE = {
    "python3 -m venv .venv",
    ".venv/bin/pip install -q -e '.[dev,mlir]'",
    ".venv/bin/pip install -q -e '.[torch]'",
    ".venv/bin/python -m pytest -n auto",
    ".venv/bin/python -m pytest tests/test_examples.py",
    ".venv/bin/python benchmarks/compile_time.py",
    ".venv/bin/python benchmarks/run_emulated.py",
    ".venv/bin/python benchmarks/training.py --only megatron",
}
"""Commands of the README that are no tool of takt: a fresh machine's, this suite, and benchmarks, tested elsewhere."""


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block of the README."""

    language: str
    text: str


def blocks(language: str) -> list[CodeBlock]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [CodeBlock(kind, text) for kind, text in found if kind == language]


def steps(command: str) -> Iterator[str]:
    """The parts of ``a && b``."""
    yield from (part.strip() for part in command.split("&&"))


def tool_of(step: str) -> str:
    """The last part of the path of a command's program."""
    return step.split()[0].rsplit("/", 1)[-1]


def commands(page: Path) -> Iterator[tuple[str, str | None]]:
    """Every command of a page, with the output it shows (None where it shows none)."""
    for kind, text in re.findall(r"^```(sh|console)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "sh":
            joined = text.replace("\\\n", " ")
            yield from ((line, None) for line in joined.splitlines() if line and not line.startswith("#"))
        else:
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, output = part.split("\n", 1)
                yield command, output


def needs_torch(step: str) -> bool:
    """Whether a command runs a schedule."""
    return tool_of(step) in TOOLS and step.split()[1] == "run"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository's root and may be written to."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")  # tables are as wide as the terminal
    return tmp_path


def run(step: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints. A tool of ours runs in this process; a pipe behind it, and anything else, in the shell."""
    if tool_of(step) not in TOOLS:
        return shell(step)
    first, *rest = step.split(" | ", 1)
    code = TOOLS[tool_of(step)](shlex.split(first)[1:])
    printed = capsys.readouterr()
    assert (code == 0) == ("error:" not in printed.err), f"{step}\n{printed.err}"
    text = printed.out + printed.err
    return shell(rest[0], text) if rest else text


def shell(command: str, text: str = "") -> str:
    """What a shell command prints, given ``text`` on its standard input."""
    return subprocess.run(["bash", "-c", command], input=text, capture_output=True, text=True, check=True).stdout


def replayed(page: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
    """Run the commands of a page and compare what they print; returns the page as it should be, and how many ran."""
    text = page.read_text()
    ran = 0
    for command, shown in commands(page):
        for step in steps(command):
            if step in ELSEWHERE or (needs_torch(step) and find_spec("torch") is None):
                continue
            printed = run(step, capsys)
            ran += tool_of(step) in TOOLS
            if shown is None:
                assert "error:" not in printed, step
                continue
            if UPDATE:
                text = text.replace(f"$ {command}\n{shown}", f"$ {command}\n{printed}", 1)
            else:
                assert printed == shown, command
    if UPDATE:
        page.write_text(text)
    return text, ran


def test_commands_run_and_print_what_is_shown(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, ran = replayed(README, capsys)
    assert ran >= 8
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures
    for picture in pictures:
        drawn = (workspace / picture).read_bytes()
        if UPDATE:
            (ROOT / picture).write_bytes(drawn)
        assert drawn == (ROOT / picture).read_bytes()
        assert len(drawn) < 500_000


def test_commands_of_the_page_of_outputs(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, ran = replayed(OUTPUTS, capsys)
    assert ran


def test_models_load() -> None:
    """Every model loads, for the platform that stands in the README."""
    texts = [Source(f"readme{number}.takt", block.text) for number, block in enumerate(blocks("takt"))]
    (platform,) = [text for text in texts if "platform " in text.text]
    models = [text for text in texts if "model " in text.text]
    assert len(models) == len(texts) - 1 > 0
    for model in models:
        load(model, platform=platform)


def test_programs_run(workspace: Path) -> None:
    programs = blocks("python")
    assert programs
    for block in programs:
        exec(compile(block.text, "README.md", "exec"), {})


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
