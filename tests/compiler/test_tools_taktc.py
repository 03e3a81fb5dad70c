"""taktc: what each option does."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tool = Callable[..., Any]

LEVELS = ("model", "moldable", "staged", "scheduled")


@pytest.fixture
def dag(examples: Path) -> tuple[str, ...]:
    """The smallest example and its platform, as arguments."""
    return str(examples / "research_dag.takt"), "--platform", str(examples / "tiny_board.takt")


@pytest.fixture
def plain(dag: tuple[str, ...], taktc: Tool) -> str:
    """The scheduled IR of the example."""
    return taktc(*dag, "--quiet").out


def test_ir_on_stdout_and_summary_on_stderr(taktc: Tool, dag: tuple[str, ...]) -> None:
    result = taktc(*dag)
    assert result.code == 0
    assert "takt.graph @research_dag scheduled <" in result.out
    assert "period" in result.err
    assert "lower bound" in result.err


def test_quiet_says_nothing(taktc: Tool, dag: tuple[str, ...]) -> None:
    assert taktc(*dag, "--quiet").err == ""


@pytest.mark.parametrize("level", LEVELS)
def test_compile_to_stops_at_a_level(taktc: Tool, dag: tuple[str, ...], level: str) -> None:
    result = taktc(*dag, "--compile-to", level)
    assert result.code == 0
    assert f"takt.graph @research_dag {level} " in result.out
    assert (result.err == "") == (level != "scheduled")


def test_emit_model_is_level_0(taktc: Tool, dag: tuple[str, ...]) -> None:
    assert taktc(*dag, "--emit", "model").out == taktc(*dag, "--compile-to", "model").out


def test_emit_ast_needs_no_platform(taktc: Tool, dag: tuple[str, ...]) -> None:
    result = taktc(dag[0], "--emit", "ast")
    assert result.code == 0
    assert "research_dag" in result.out


def test_emit_generic_is_the_same_module(taktc: Tool, dag: tuple[str, ...], plain: str) -> None:
    generic = taktc(*dag, "--quiet", "--emit", "generic").out
    assert '"takt.graph"()' in generic
    back = taktc("-", "--input-format", "mlir", "--quiet", stdin=generic.encode())
    assert back.out == plain


def test_emit_takes_the_options_of_a_target(taktc: Tool, dag: tuple[str, ...]) -> None:
    wide, narrow = (taktc(*dag, "--emit", f"summary{{width={width}}}").out for width in (100, 60))
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, wide.splitlines()))
    assert "step" in taktc(*dag, "--emit", "summary{microbatches=8}").out


def test_emit_json_is_json(taktc: Tool, dag: tuple[str, ...]) -> None:
    result = taktc(*dag, "--emit", "json")
    assert json.loads(result.out)["model"] == "research_dag"
    assert result.err == ""


@pytest.mark.parametrize("kind", ["perfetto", "svg", "summary"])
def test_other_emits(taktc: Tool, dag: tuple[str, ...], kind: str) -> None:
    result = taktc(*dag, "--emit", kind)
    assert (result.code, result.err) == (0, "")
    assert "research_dag" in result.out


def test_debuginfo_names_the_model_file(taktc: Tool, dag: tuple[str, ...], plain: str) -> None:
    located = taktc(*dag, "--quiet", "--print-debuginfo").out
    assert f'loc("{dag[0]}":' in located
    assert taktc("-", "--quiet", stdin=located.encode()).out == plain


def test_set_changes_a_parameter(taktc: Tool, examples: Path) -> None:
    one = taktc(examples / "gpt2_xl.takt", "--emit", "model", "--set", "layers=1")
    two = taktc(examples / "gpt2_xl.takt", "--emit", "model", "--set", "layers=2")
    assert one.code == two.code == 0
    assert one.out.count('_decoder", 1>') == 0 < two.out.count('_decoder", 1>')


def test_model_picks_one_of_several(taktc: Tool, tmp_path: Path) -> None:
    path = tmp_path / "two.takt"
    path.write_text("model a { x = op() time [1us] output x }\nmodel b { y = op() time [2us] output y }\n")
    assert "@b model" in taktc(path, "--model", "b", "--emit", "model").out
    ambiguous = taktc(path, "--emit", "model")
    assert ambiguous.code == 1
    assert "several models" in ambiguous.err


def test_stdin_model_and_stdin_ir(taktc: Tool, dag: tuple[str, ...], plain: str) -> None:
    model = Path(dag[0]).read_bytes()
    assert taktc("-", *dag[1:], "--quiet", stdin=model).out == plain
    assert taktc("-", "--quiet", stdin=plain.encode()).out == plain


def test_platform_from_stdin(taktc: Tool, dag: tuple[str, ...], plain: str) -> None:
    assert taktc(dag[0], "--platform", "-", "--quiet", stdin=Path(dag[2]).read_bytes()).out == plain


# --- output files --------------------------------------------------------------------------


def test_output_file(taktc: Tool, dag: tuple[str, ...], plain: str, tmp_path: Path) -> None:
    target = tmp_path / "out.mlir"
    result = taktc(*dag, "--quiet", "-o", target)
    assert (result.code, result.out, target.read_text()) == (0, "", plain)
    assert os.listdir(tmp_path) == ["out.mlir"]
    assert not target.stat().st_mode & stat.S_IXUSR


def test_dash_is_stdout(taktc: Tool, dag: tuple[str, ...], plain: str) -> None:
    assert taktc(*dag, "--quiet", "-o", "-").out == plain


def test_failure_leaves_the_old_output(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "out.mlir"
    target.write_text("old")
    assert taktc(*dag, "--stages", "99", "-o", target).code == 1
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.mlir"]


def test_output_keeps_mode_and_link(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> None:
    target, link = tmp_path / "real.mlir", tmp_path / "link.mlir"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert taktc(*dag, "--quiet", "-o", link).code == 0
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert target.read_text().startswith("builtin.module")


# --- re-entering ---------------------------------------------------------------------------


@pytest.fixture
def dumps(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> Path:
    """A folder with a dump of every level."""
    assert taktc(*dag, "--quiet", "--dump-phases-to", tmp_path / "ir").code == 0
    return tmp_path / "ir"


def test_a_dump_for_every_level(dumps: Path) -> None:
    assert sorted(os.listdir(dumps)) == [f"research_dag.{i}.{level}.mlir" for i, level in enumerate(LEVELS)]
    for path in dumps.iterdir():
        assert "loc(" in path.read_text()


@pytest.mark.parametrize("level", LEVELS)
def test_every_dump_compiles_to_the_same_schedule(taktc: Tool, dumps: Path, plain: str, level: str) -> None:
    (path,) = dumps.glob(f"*.{level}.mlir")
    result = taktc(path, "--compile-from", level, "--quiet")
    assert (result.code, result.out) == (0, plain)


def test_the_first_line_of_a_dump_is_the_command_to_go_on(taktc: Tool, dumps: Path) -> None:
    for path in dumps.iterdir():
        comment, tool, *args = path.read_text().splitlines()[0].split()
        assert (comment, tool) == ("//", "taktc")
        result = taktc(*args)
        assert result.code == 0
        assert "research_dag" in result.out


def test_dumps_repeat_the_options_of_the_rest(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> None:
    taktc(*dag, "--quiet", "--dump-phases-to", tmp_path, "--stages", "2", "--seed", "7")
    first = (tmp_path / "research_dag.1.moldable.mlir").read_text().splitlines()[0]
    assert first.endswith("--compile-from moldable --stages 2 --seed 7")


def test_dumps_on_the_way_to_programs_go_on_to_programs(taktc: Tool, dag: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--compile-to", "programs", "--microbatches", "5")
    programs = taktc(*dag, "--quiet", *options, "--dump-phases-to", tmp_path / "ir").out
    paths = sorted((tmp_path / "ir").iterdir())
    assert len(paths) == 6
    for number, path in enumerate(paths):
        result = taktc(*path.read_text().splitlines()[0].split()[2:], "--quiet")
        assert result.code == 0
        if number < 3:  # up to the stages; then there is a schedule, and the command shows what it is
            assert result.out == programs
        else:
            assert result.out.startswith("research_dag on tiny_board")


def test_compile_from_refuses_another_level(taktc: Tool, dumps: Path) -> None:
    result = taktc(next(dumps.glob("*.staged.mlir")), "--compile-from", "moldable")
    assert result.code == 1
    assert "is at level 'staged', not at 'moldable'" in result.err


def test_compile_to_a_level_already_passed(taktc: Tool, dumps: Path) -> None:
    result = taktc(next(dumps.glob("*.staged.mlir")), "--compile-to", "moldable")
    assert result.code == 1
    assert "at level 'staged' already, past 'moldable'" in result.err


def test_a_tampered_schedule_is_refused(taktc: Tool, dag: tuple[str, ...], plain: str) -> None:
    result = taktc("-", "--quiet", stdin=plain.replace("at 0>", "at 777>").encode())
    assert result.code == 1
    assert "<stdin>:" in result.err
    assert result.out == ""


# --- passes, printing, timing --------------------------------------------------------------


def test_own_list_of_passes(taktc: Tool, dag: tuple[str, ...]) -> None:
    result = taktc(*dag, "-p", "annotate-costs,partition-stages{stages=2}")
    assert result.code == 0
    assert "@research_dag staged" in result.out
    assert result.out.count("takt.stage ") == 2
    assert result.err == ""


def test_stages_option(taktc: Tool, dag: tuple[str, ...]) -> None:
    assert taktc(*dag, "--compile-to", "staged", "--stages", "3").out.count("takt.stage ") == 3


def test_plan_option(taktc: Tool, dag: tuple[str, ...]) -> None:
    assert 'plan "laminar"' in taktc(*dag, "--quiet", "--plan", "laminar").out
    assert 'plan "pushed"' in taktc(*dag, "--quiet", "--plan", "pushed").out


def test_max_in_flight(taktc: Tool, dag: tuple[str, ...]) -> None:
    limited = (*dag, "--plan", "pushed", "--emit", "json", "--max-in-flight")
    assert json.loads(taktc(*limited, "4").out)["schedule"]["in_flight"] <= 4
    assert json.loads(taktc(*limited, "1").out)["schedule"]["in_flight"] == 1
    assert json.loads(taktc(*limited, "1", "--stages", "3").out)["schedule"]["in_flight"] == 1


def test_print_ir_after_all_is_ir(taktc: Tool, dag: tuple[str, ...]) -> None:
    result = taktc(*dag, "--quiet", "--print-ir-after-all")
    headers = [line for line in result.err.splitlines() if line.startswith("// -----// IR Dump After ")]
    assert [h.split()[5].split("{")[0] for h in headers] == [
        "parse",
        "annotate-costs",
        "partition-stages",
        "schedule-periodic",
    ]
    last = result.err.split(headers[-1])[1]
    assert taktc("-", "--quiet", stdin=(headers[-1] + last).encode()).out == result.out


def test_timing_table(taktc: Tool, dag: tuple[str, ...]) -> None:
    rows = taktc(*dag, "--quiet", "--timing").err.splitlines()
    assert rows[0].split() == ["phase", "wall", "s", "share", "peak", "MiB"]
    names = [row.split()[0] for row in rows[1:]]
    assert names == ["parse", "annotate-costs", "partition-stages", "schedule-periodic", "emit", "verify", "total"]
    assert all(float(row.split()[-1]) > 1 for row in rows[1:])


def test_list_passes(taktc: Tool) -> None:
    lines = taktc("--list-passes").out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "annotate-costs",
        "expand-training",
        "insert-communication",
        "lower-to-programs",
        "partition-stages",
        "recompute-activations",
        "restrict-allotments",
        "schedule-periodic",
        "schedule-step",
        "verify-level",
        "verify-schedule",
    ]
    assert all(len(line.split()) > 4 for line in lines)


def test_pass_help(taktc: Tool) -> None:
    result = taktc("--pass-help", "partition-stages")
    assert result.code == 0
    assert "stages=an integer" in result.out
    assert taktc("--pass-help", "cse").code == 0


def test_simulate_agrees_with_the_schedule(taktc: Tool, dag: tuple[str, ...]) -> None:
    result = taktc(*dag, "--simulate", "50")
    assert result.code == 0
    rows = {line[:13].strip(): line[13:].split() for line in result.out.splitlines()}
    assert rows["period"][0:2] == rows["period"][2:4]
    assert "prediction and simulation agree" in result.out


def test_simulate_beside_a_result_goes_to_stderr(taktc: Tool, dag: tuple[str, ...], plain: str) -> None:
    result = taktc(*dag, "--quiet", "--simulate", "50", "--emit", "mlir")
    assert result.out == plain
    assert "predicted" in result.err


def test_version_and_help(taktc: Tool) -> None:
    assert taktc("--version").out.startswith("taktc 0.1.0 (xDSL 0.74")
    text = taktc("--help").out
    assert "examples:" in text
    assert "exit codes:" in text


@pytest.mark.parametrize("level", ["communicating", "programs"])
def test_later_levels_are_written_read_back_and_shown(taktc: Tool, examples: Path, tmp_path: Path, level: str) -> None:
    dag = (str(examples / "research_dag.takt"), "--platform", str(examples / "tiny_board.takt"))
    plain = taktc(*dag, "--emit", "summary")
    made = taktc(*dag, "--compile-to", level, "--quiet", "-o", str(tmp_path / "late.mlir"))
    assert made.code == 0, made.err
    late = str(tmp_path / "late.mlir")
    text = (tmp_path / "late.mlir").read_text()
    assert f"takt.graph @research_dag {level} <" in text
    assert taktc(late, "--quiet").out == text
    generic = taktc(late, "--emit", "generic", "--quiet").out
    assert taktc("-", "--quiet", "--input-format", "mlir", stdin=generic.encode()).code == 0
    assert taktc(late, "--emit", "summary").out == plain.out
    for kind in ("json", "perfetto", "svg"):
        assert taktc(late, "--emit", kind).out == taktc(*dag, "--emit", kind).out
    assert "prediction and simulation agree" in taktc(late, "--simulate", "20").out
