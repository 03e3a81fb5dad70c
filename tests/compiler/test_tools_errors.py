"""Every wrong command line and every wrong file gives a message and an exit code, never a traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Tool = Callable[..., Any]

MODEL = """\
model m {
  x = op() time [4us, 2us]
  y = op(x) time [6us, 3us]
  output y
}
"""
PLATFORM = """\
accelerator chip { memory = 1 GiB bandwidth = 1 GB/s launch = 1 us peak f32 = 1 TFLOP/s }
platform p { accelerators = 2 of chip link bus { latency = 1 us bandwidth = 1 GB/s } }
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, a platform, and files that are wrong in several ways."""
    files: dict[str, str | bytes] = {
        "m.takt": MODEL,
        "p.takt": PLATFORM,
        "m.txt": MODEL,
        "noextension": MODEL,
        "empty.takt": "",
        "empty.mlir": "",
        "binary.takt": bytes(range(256)) * 8,
        "binary.mlir": bytes(range(256)) * 8,
        "zeros.mlir": b"\0" * 100,
        "utf16.takt": MODEL.encode("utf-16"),
        "deep.mlir": "builtin.module {" * 3000,
        "notir.mlir": MODEL,
        "nograph.mlir": "builtin.module {}",
        "typo.mlir": "takt.graf @x {}",
        "syntax.takt": "model m { x = op( }",
        "name.takt": "model m { y = gelo(x) output y }",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "folder.takt").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


OK = ("m.takt", "--platform", "p.takt")

USAGE: list[tuple[tuple[str, ...], str]] = [
    ((), "no input"),
    (("--emitt", "json", "m.takt"), "did you mean '--emit'?"),
    (("--stage=2", "m.takt"), "did you mean '--stages'?"),
    (("--sim", "2", "m.takt"), "unrecognized arguments: --sim"),
    ((*OK, "--emit", "jsn"), "did you mean 'json'?"),
    ((*OK, "--emit"), "expected one argument"),
    ((*OK, "--plan", "laminate"), "did you mean 'laminar'?"),
    ((*OK, "--compile-to", "sheduled"), "did you mean 'scheduled'?"),
    ((*OK, "--compile-from", "x"), "invalid choice"),
    ((*OK, "--stages", "0"), "expected a positive integer, got '0'"),
    ((*OK, "--stages", "two"), "expected a positive integer, got 'two'"),
    ((*OK, "--stages", "9" * 5000), "expected a positive integer"),
    ((*OK, "--seed", "-1"), "expected an integer of at least 0"),
    ((*OK, "--time-limit", "nan"), "expected a positive number of seconds"),
    ((*OK, "--effort", "0"), "expected a positive number, got '0'"),
    ((*OK, "--plan", "automatic"), "did you mean 'auto'?"),
    ((*OK, "--solver", "cpsat"), "did you mean 'cp-sat'?"),
    ((*OK, "--objective", "periods"), "did you mean 'period'?"),
    ((*OK, "--objective", "step"), "--objective step needs --microbatches M"),
    ((*OK, "--granularity", "blocks"), "did you mean 'block'?"),
    (
        (*OK, "--allotments", "stages"),
        "expected any, stage or a positive integer, got 'stages' (did you mean 'stage'?)",
    ),
    ((*OK, "--allotments", "0"), "expected a positive integer, got '0'"),
    ((*OK, "-p", "annotate-costs", "--allotments", "2"), "--allotments belongs to the standard pipeline"),
    ((*OK, "--microbatches", "4"), "--microbatches is for --objective step"),
    ((*OK, "--objective", "latency", "--gap", "1%"), "--gap is about the period, and the objective is the latency"),
    ((*OK, "--max-latency", "30"), "'30' has no unit: write 30ms, or s, ms, us, ns"),
    ((*OK, "--max-latency", "30m"), "'30m' has an unknown unit: units are s, ms, us, ns (did you mean 'ms'?)"),
    ((*OK, "--max-latency", "-1s"), "expected one argument"),
    ((*OK, "--max-latency", "0.5ns"), "expected a time such as 30ms, got '0.5ns'"),
    ((*OK, "--memory", "60"), "'60' has no unit: write 60GiB"),
    ((*OK, "--memory", "60Gib"), "did you mean 'GiB'?"),
    ((*OK, "--memory", "lots"), "expected a size such as 60GiB, got 'lots'"),
    ((*OK, "--max-crossing", "9" * 30 + "GB"), "expected a size such as 60GiB"),
    ((*OK, "--gap", "5"), "'5' is 500%: write 5%, or a fraction below 1"),
    ((*OK, "--tolerance", "-1%"), "expected one argument"),
    ((*OK, "--tolerance", "x%"), "expected a share such as 1% or 0.01, got 'x%'"),
    ((*OK, "--pareto", "period"), "expected at least 2 of period, in-flight, latency, memory, crossing"),
    ((*OK, "--pareto", "period,inflight"), "there is no 'inflight' (did you mean 'in-flight'?)"),
    ((*OK, "--pareto", "period,period"), "'period' is given twice"),
    ((*OK, "--pareto", "period,latency", "--emit", "perfetto"), "--pareto prints a table, --emit json or --emit svg"),
    ((*OK, "--pareto", "period,latency", "--simulate", "9"), "--simulate is about one schedule"),
    ((*OK, "--pareto", "period,latency", "--objective", "latency"), "--objective is about one schedule"),
    ((*OK, "--pareto", "period,latency", "-p", "annotate-costs"), "--pareto belongs to the standard pipeline"),
    ((*OK, "-p", "annotate-costs", "--memory", "1GiB"), "--memory belongs to the standard pipeline"),
    ((*OK, "--simulate", "0"), "expected a positive integer"),
    ((*OK, "--set", "layers"), "expected name=value, got 'layers'"),
    ((*OK, "--set", "=3"), "expected name=value"),
    ((*OK, "--set", "a=1", "--set", "a=2"), "--set a is given twice"),
    ((*OK, "other.takt"), "unrecognized arguments: other.takt"),
    ((*OK, "--emit", "ast", "--compile-to", "staged"), "--emit ast stops"),
    ((*OK, "--emit", "svg", "--compile-to", "model"), "--emit svg needs a schedule"),
    ((*OK, "--emit", "svg{width=9}", "--pareto", "period,latency"), "--emit svg has no options with --pareto"),
    ((*OK, "--simulate", "9", "--compile-to", "model"), "--simulate needs a schedule"),
    ((*OK, "--simulate", "9", "--emit", "model"), "--simulate needs a schedule"),
    ((*OK, "--emit", "model", "-p", "annotate-costs"), "no pass can run"),
    ((*OK, "-p", "annotate-costs", "--stages", "2"), "--stages belongs to the standard pipeline"),
    ((*OK, "-p", "annotate-cost"), "did you mean 'annotate-costs'?"),
    ((*OK, "-p", "annotate-costs{nope=1}"), "pass 'annotate-costs' has no option 'nope'"),
    ((*OK, "-p", "partition-stages{stages=many}"), "option 'stages' of pass 'partition-stages' takes an integer"),
    ((*OK, "-p", "a{{"), "bad pipeline"),
    ((*OK, "-p", "}"), "bad pipeline"),
    (("--pass-help", "nope"), "there is no pass 'nope'"),
    (("-", "--platform", "-"), "cannot both come from stdin"),
]

INPUT: list[tuple[tuple[str, ...], str]] = [
    (("missing.takt",), "cannot read 'missing.takt': No such file or directory"),
    (("missing.mlir",), "cannot read 'missing.mlir': No such file or directory"),
    (("mm.takt",), "did you mean 'm.takt'?"),
    (("folder.takt",), "cannot read 'folder.takt': Is a directory"),
    (("m.takt/x.takt",), "cannot read"),
    (("bad\0name.takt",), "cannot read"),
    (("bad\0name.mlir",), "cannot read"),
    (("x" * 5000 + ".mlir",), "File name too long"),
    (("m.txt",), "has extension '.txt'; expected .takt (a model) or .mlir (IR)"),
    (("noextension",), "has no extension"),
    (("empty.takt",), "empty.takt:1:1: error: the file is empty"),
    (("empty.mlir",), "empty.mlir:1:1: error: the file is empty"),
    (("-",), "<stdin>:1:1: error: the file is empty"),
    (("binary.takt",), "binary.takt:"),
    (("binary.mlir",), "not UTF-8 text: byte 0x80"),
    (("zeros.mlir",), "zeros.mlir:1:1: error: "),
    (("utf16.takt",), "not UTF-8 text: byte 0xff"),
    (("deep.mlir",), "nested too deeply"),
    (("notir.mlir",), "notir.mlir:1:1: error: "),
    (("nograph.mlir",), "takt.graph"),
    (("typo.mlir",), "did you mean 'takt.graph'?"),
    (("syntax.takt",), "syntax.takt:1:"),
    (("name.takt", "--platform", "p.takt"), "gelu"),
    (("m.takt",), "platform"),
    (("m.takt", "--platform", "missing.takt"), "cannot read 'missing.takt'"),
    (("m.takt", "--platform", "m.takt"), "no platform in this file"),
    (("m.takt", "--platform", "p.takt", "--set", "layers=3"), "no param 'layers'"),
    (("m.takt", "--platform", "p.takt", "--model", "other"), "no model 'other'"),
    (("typo.mlir", "--set", "a=1"), "--set has no effect on 'typo.mlir'"),
    (("typo.mlir", "--platform", "p.takt"), "--platform has no effect"),
    (("typo.mlir", "--emit", "ast"), "--emit ast needs a .takt model"),
    ((*OK, "--compile-from", "staged"), "--compile-from staged needs IR of that level"),
    ((*OK, "--stages", "3"), "stages"),
    ((*OK, "-p", "schedule-periodic"), "level"),
    ((*OK, "-p", "annotate-costs,annotate-costs"), "annotate-costs needs 'model'"),
    ((*OK, "--emit", "json", "-p", "annotate-costs"), "--emit json needs a schedule"),
    ((*OK, "-o", "folder.takt"), "cannot write 'folder.takt': it is a directory"),
    ((*OK, "-o", "nowhere/out.mlir"), "cannot write 'nowhere/out.mlir': there is no directory 'nowhere'"),
    ((*OK, "-o", "m.takt/out.mlir"), "cannot write"),
    ((*OK, "-o", "bad\0name"), "cannot write"),
    ((*OK, "--dump-phases-to", "m.takt"), "cannot write"),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("args", "message"), USAGE, ids=[" ".join(a)[-60:] or "none" for a, _ in USAGE])
def test_wrong_usage_is_2(taktc: Tool, args: tuple[str, ...], message: str) -> None:
    result = taktc(*args)
    assert message in result.err
    assert "taktc: error: " in result.err
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("args", "message"), INPUT, ids=[repr(" ".join(a)[-60:]) for a, _ in INPUT])
def test_wrong_input_is_1(taktc: Tool, args: tuple[str, ...], message: str) -> None:
    result = taktc(*args)
    assert message in result.err
    assert "error: " in result.err
    assert (result.code, result.out) == (1, "")
    assert "Traceback" not in result.err
    assert "internal error" not in result.err


def test_an_unwritable_folder_is_reported_and_stays_clean(
    taktc: Tool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("compiler.command_line.os.replace", refuse)
    result = taktc(*OK, "-o", "out.mlir")
    assert result.code == 1
    assert "cannot write 'out.mlir': Permission denied" in result.err
    assert not [p for p in here.iterdir() if p.name.startswith((".out", "out"))]


def test_a_fault_of_the_compiler_is_told_apart(taktc: Tool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr("compiler.driver.run_pipeline", broken)
    result = taktc(*OK)
    assert result.code == 1
    assert "internal error: ZeroDivisionError: of ours" in result.err
    assert "--debug" in result.err
    assert "Traceback" not in result.err


def test_debug_shows_the_traceback(taktc: Tool, here: Path) -> None:
    result = taktc("name.takt", "--debug", "--platform", "p.takt")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "name.takt:1:" in result.err


def test_an_interrupt_has_its_code(taktc: Tool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compiler.driver.run_pipeline", interrupted)
    result = taktc(*OK, "-o", "out.mlir")
    assert (result.code, result.err) == (130, "taktc: interrupted\n")
    assert not (here / "out.mlir").exists()


WORDS = [*OK, "--emit", "json", "svg", "-p", "cse", "--stages", "1", "-", "--quiet", "--set", "a=1", "{"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(args=st.lists(st.sampled_from(WORDS) | st.text(max_size=4).filter(lambda w: not w.startswith("-o")), max_size=6))
def test_any_command_line_ends_cleanly(taktc: Tool, here: Path, args: list[str]) -> None:
    result = taktc(*args)
    assert result.code in (0, 1, 2)
    assert "Traceback" not in result.err
    assert "internal error" not in result.err


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.binary(max_size=60))
@pytest.mark.parametrize("format", ["takt", "mlir"])
def test_any_bytes_end_cleanly(taktc: Tool, data: bytes, format: str) -> None:
    result = taktc("-", "--input-format", format, stdin=data)
    assert result.code == 1
    assert "<stdin>:" in result.err
    assert "Traceback" not in result.err
    assert "internal error" not in result.err
