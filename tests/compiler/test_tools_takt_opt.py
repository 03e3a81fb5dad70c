"""takt-opt: one pass at a time, on IR and on models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tool = Callable[..., Any]

IR = """\
builtin.module {
  takt.graph @g model {
    %a = takt.input : tensor<2x4xf32>
    %b = takt.gelu(%a) : (tensor<2x4xf32>) -> tensor<2x4xf32>
    takt.output %b : tensor<2x4xf32>
  }
}
"""


@pytest.fixture
def dag(examples: Path) -> tuple[str, ...]:
    """The smallest example and its platform, as arguments."""
    return str(examples / "research_dag.takt"), "--platform", str(examples / "tiny_board.takt")


@pytest.mark.parametrize("args", [(), ("-",)])
def test_stdin_to_stdout_is_the_identity(takt_opt: Tool, args: tuple[str, ...]) -> None:
    result = takt_opt(*args, stdin=IR.encode())
    assert (result.code, result.out, result.err) == (0, IR, "")


def test_generic_and_back(takt_opt: Tool) -> None:
    generic = takt_opt("--print-op-generic", stdin=IR.encode()).out
    assert '"takt.gelu"(%a)' in generic
    assert takt_opt(stdin=generic.encode()).out == IR


def test_a_model_is_an_input_format(takt_opt: Tool, taktc: Tool, dag: tuple[str, ...]) -> None:
    assert takt_opt(*dag).out == taktc(*dag, "--emit", "model").out
    piped = takt_opt("-f", "takt", *dag[1:], stdin=Path(dag[0]).read_bytes())
    assert piped.out == takt_opt(*dag).out


def test_passes_one_at_a_time_make_the_pipeline(takt_opt: Tool, taktc: Tool, dag: tuple[str, ...]) -> None:
    text = takt_opt(*dag).out
    for step in ("annotate-costs", "partition-stages", "schedule-periodic", "verify-level{level=scheduled}"):
        result = takt_opt("-p", step, stdin=text.encode())
        assert (result.code, result.err) == (0, "")
        text = result.out
    assert text == taktc(*dag, "--quiet").out


def test_passes_of_xdsl_are_there_too(takt_opt: Tool) -> None:
    assert takt_opt("-p", "canonicalize", stdin=IR.encode()).out == IR


def test_the_level_is_verified_after_parsing_and_after_passes(takt_opt: Tool) -> None:
    broken = IR.replace("%b = takt.gelu(%a)", "%b = takt.gelu(%c)").replace(
        "    takt.output", "    %c = takt.relu(%a) : (tensor<2x4xf32>) -> tensor<2x4xf32>\n    takt.output"
    )
    result = takt_opt(stdin=broken.encode())
    assert result.code == 1
    assert "<stdin>:4:5: error: " in result.err
    assert takt_opt("--disable-verify", stdin=broken.encode()).code == 0


def test_ir_that_does_not_verify_has_a_place(takt_opt: Tool) -> None:
    wrong = IR.replace("-> tensor<2x4xf32>\n    takt.out", "-> tensor<2x5xf32>\n    takt.out").replace(
        "output %b : tensor<2x4xf32>", "output %b : tensor<2x5xf32>"
    )
    result = takt_opt(stdin=wrong.encode())
    assert result.code == 1
    assert "<stdin>:4:5: error: " in result.err
    assert "    %b = takt.gelu(%a)" in result.err


def test_split_input_needs_a_line_of_its_own(takt_opt: Tool) -> None:
    """Headers of dumps begin alike and are no separators."""
    dump = "// -----// IR Dump After parse //----- //\nbuiltin.module {\n}\n"
    result = takt_opt("--split-input-file", stdin=dump.encode())
    assert (result.code, result.err) == (0, "")


def test_split_input(takt_opt: Tool) -> None:
    two = IR + "// -----\n" + IR.replace("@g", "@h")
    result = takt_opt("--split-input-file", stdin=two.encode())
    assert result.out == two
    broken = IR + "// -----\n" + IR.replace("gelu", "gello")
    result = takt_opt("--split-input-file", stdin=broken.encode())
    assert (result.code, result.out) == (1, "")
    line = IR.count("\n") + 1 + 4
    assert f"<stdin>:{line}:10: error: there is no operation 'takt.gello'" in result.err


def test_verify_diagnostics_prints_errors_as_the_result(takt_opt: Tool) -> None:
    result = takt_opt("--verify-diagnostics", stdin=b"takt.graf @x {}")
    assert result.code == 0
    assert "<stdin>:1:1: error: there is no operation 'takt.graf'" in result.out


def test_dumps_and_times_go_to_stderr(takt_opt: Tool, dag: tuple[str, ...]) -> None:
    result = takt_opt(*dag, "-p", "annotate-costs", "--print-between-passes", "--time-passes")
    assert result.out == takt_opt(*dag, "-p", "annotate-costs").out
    assert "// -----// IR Dump After annotate-costs //----- //" in result.err
    assert "wall s" in result.err


def test_targets(takt_opt: Tool, taktc: Tool, dag: tuple[str, ...]) -> None:
    scheduled = taktc(*dag, "--quiet").out.encode()
    assert takt_opt("-t", "json", stdin=scheduled).out == taktc(*dag, "--emit", "json").out
    result = takt_opt("-t", "jsn", stdin=scheduled)
    assert result.code == 2
    assert "there is no target 'jsn' (did you mean 'json'?)" in result.err
    assert takt_opt("-t", "json{", stdin=scheduled).code == 2
    assert takt_opt("-t", "json{a=1}", stdin=scheduled).code == 2
    unscheduled = takt_opt("-t", "json", stdin=IR.encode())
    assert (unscheduled.code, unscheduled.out) == (1, "")
    assert "Traceback" not in unscheduled.err


def test_output_is_atomic(takt_opt: Tool, tmp_path: Path) -> None:
    target = tmp_path / "o.mlir"
    target.write_text("old")
    assert takt_opt("-o", target, stdin=b"nonsense").code == 1
    assert target.read_text() == "old"
    assert takt_opt("-o", target, stdin=IR.encode()).code == 0
    assert target.read_text() == IR
    assert [p.name for p in tmp_path.iterdir()] == ["o.mlir"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--no-such",), 2, "unrecognized arguments: --no-such"),
        (("--pases", "x"), 2, "did you mean '--passes'?"),
        (("-p", "canonicalise"), 2, "did you mean 'canonicalize'?"),
        (("-p", "annotate-costs{x=1}"), 2, "has no option 'x'"),
        (("-p", "a b"), 2, "bad pipeline"),
        (("-f", "onnx"), 2, "invalid choice: 'onnx'"),
        (("missing.mlir",), 1, "cannot read 'missing.mlir'"),
        (("-p", "annotate-costs"), 1, "platform"),
        (("--pass-help", "canonicalise"), 2, "did you mean 'canonicalize'?"),
        (("-o", "/"), 1, "cannot write '/': it is a directory"),
    ],
)
def test_mistakes(takt_opt: Tool, args: tuple[str, ...], code: int, message: str) -> None:
    result = takt_opt(*args, stdin=IR.encode())
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "takt-opt: error: " in result.err or "<stdin>:" in result.err
    assert "Traceback" not in result.err


def test_unregistered_operations_need_the_option(takt_opt: Tool) -> None:
    text = 'builtin.module {\n  "other.op"() : () -> ()\n}\n'
    assert takt_opt(stdin=text.encode()).code == 1
    assert takt_opt("--allow-unregistered-dialect", stdin=text.encode()).out == text


def test_lists_and_help(takt_opt: Tool) -> None:
    listed = takt_opt("--list-passes").out
    assert "  annotate-costs " in listed
    assert "  canonicalize " in listed
    assert "options:" in takt_opt("--pass-help", "annotate-costs").out
    assert takt_opt("--version").out.startswith("takt-opt ")
    assert "examples:" in takt_opt("--help").out
