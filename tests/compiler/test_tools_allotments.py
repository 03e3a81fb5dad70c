"""taktc --allotments: plans in which every operator runs on its whole stage, or on a given number of accelerators."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler import compile_model
from compiler.pipeline import Options
from dialects.diagnostics import TaktError
from frontend import Source

Tool = Callable[..., Any]
EFFORT = ("--quiet", "--effort", "0.1")
SMALL = ("--set", "encoder_layers=2", "--set", "decoder_layers=2")
EXAMPLES = {
    "research_dag": ("tiny_board",),
    "gpt2_xl": ("dgx_a100_16", "--set", "layers=2"),
    "encoder_decoder": ("dgx_a100_16", *SMALL),
}


@pytest.fixture
def arguments(examples: Path) -> Callable[[str], tuple[str, ...]]:
    """The arguments that compile an example, small, with little work for the solvers."""

    def of(name: str) -> tuple[str, ...]:
        platform, *rest = EXAMPLES[name]
        return str(examples / f"{name}.takt"), "--platform", str(examples / f"{platform}.takt"), *rest, *EFFORT

    return of


def compiled(taktc: Tool, *args: str) -> str:
    result = taktc(*args)
    assert result.code == 0, result.err
    return result.out


def document(taktc: Tool, ir: str) -> dict[str, Any]:
    return json.loads(compiled_from(taktc, ir))


def compiled_from(taktc: Tool, ir: str) -> str:
    return taktc("-", "--quiet", "--emit", "json", stdin=ir.encode()).out


def filled(schedule: dict[str, Any]) -> set[int]:
    """The widths of the stages, all of whose operators run on all of their accelerators."""
    blocks = {stage["index"]: stage["accelerators"] for stage in schedule["stages"]}
    for operator in schedule["operators"]:
        assert operator["copies"] == [blocks[operator["stage"]]], operator["name"]
    return {len(block) for block in blocks.values()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_operator_runs_on_its_whole_stage(
    taktc: Tool, takt_opt: Tool, arguments: Callable[[str], tuple[str, ...]], name: str
) -> None:
    ir = compiled(taktc, *arguments(name), "--allotments", "stage")
    schedule = document(taktc, ir)
    filled(schedule)
    free = document(taktc, compiled(taktc, *arguments(name), "--allotments", "any"))
    with pytest.raises(AssertionError):
        filled(free)
    found, bound = schedule["schedule"], free["schedule"]["bound"]
    assert found["bound"] == bound, "the bound is that of any allotments"
    assert bound <= found["period"]
    proven = takt_opt("-p", "verify-schedule{certificate=true}", stdin=ir.encode())
    assert proven.code == 0, proven.err
    gap = f"{100 * (found['period'] / bound - 1):.2f} % above it" if found["period"] > bound else "is optimal"
    assert gap in " ".join(taktc("-", "--emit", "summary", stdin=ir.encode()).out.split())


@pytest.mark.parametrize("plan", ["stages", "auto"])
def test_every_operator_runs_on_so_many_accelerators(
    taktc: Tool, takt_opt: Tool, arguments: Callable[[str], tuple[str, ...]], plan: str
) -> None:
    ir = compiled(taktc, *arguments("encoder_decoder"), "--allotments", "2", "--plan", plan)
    schedule = document(taktc, ir)
    assert filled(schedule) == {2}
    assert {operator["allotment"] for operator in schedule["operators"]} == {2}
    assert "cost <[2] " in ir
    assert "cost <[1" not in ir
    assert takt_opt("-p", "verify-schedule{certificate=true}", stdin=ir.encode()).code == 0


def test_the_plans_are_those_of_whole_stages(taktc: Tool, arguments: Callable[[str], tuple[str, ...]]) -> None:
    """Of the trade-off too; the bound of one number of accelerators is that of the restricted model."""
    dag, axes = arguments("research_dag"), ("--pareto", "period,in-flight", "--emit", "json")
    front = json.loads(compiled(taktc, *dag, "--allotments", "stage", *axes))
    assert {point["plan"] for point in front["points"]} <= {"stages", "interleaved", "v"}
    one = json.loads(compiled(taktc, *dag, "--allotments", "1", *axes))
    assert front["bound"] < 930_000 == one["bound"] == one["points"][0]["period"]


def test_any_is_what_there_is_without_the_option(taktc: Tool, arguments: Callable[[str], tuple[str, ...]]) -> None:
    dag = arguments("research_dag")
    assert compiled(taktc, *dag, "--allotments", "any") == compiled(taktc, *dag)


@pytest.mark.parametrize("kind", ["stage", "1"])
def test_every_dump_goes_on_to_the_same_schedule(
    taktc: Tool, arguments: Callable[[str], tuple[str, ...]], tmp_path: Path, kind: str
) -> None:
    options = ("--allotments", kind, "--dump-phases-to", str(tmp_path), "--timing")
    result = taktc(*arguments("research_dag"), *options)
    assert result.code == 0, result.err
    assert ("\nrestrict-allotments " in result.err) == (kind == "1")
    paths = sorted(tmp_path.iterdir())
    assert [path.name.split(".")[1] for path in paths] == ["0", "1", "2", "3"]
    for path in paths[:3]:
        command = path.read_text().splitlines()[0].split()[2:]
        assert command[-2:] == ["--allotments", kind]
        assert taktc(*command, "--quiet").out == result.out


def test_stages_of_another_width_are_not_gone_on_from(taktc: Tool, arguments: Callable[[str], tuple[str, ...]]) -> None:
    staged = compiled(taktc, *arguments("research_dag"), "--compile-to", "staged")
    for kind, message in (
        ("stage", "operation 'f' runs on 1 accelerators, not on all 2 of stage 2"),
        ("1", "operation 'a' runs on 1 accelerators, not on all 2 of stage 0"),
    ):
        refused = taktc("-", "--allotments", kind, stdin=staged.encode())
        assert refused.code == 1
        assert message in refused.err


def test_a_number_that_an_operator_has_not_is_refused(taktc: Tool, arguments: Callable[[str], tuple[str, ...]]) -> None:
    refused = taktc(*arguments("research_dag"), "--allotments", "2")
    assert refused.code == 1
    assert "research_dag.takt:22:3: error: 'f' (op) cannot run on 2 accelerators, only on 1\n" in refused.err
    assert "hint: all operators can run on 1\n" in refused.err


@pytest.mark.parametrize("kind", ["stage", "2"])
def test_other_plans_are_refused(taktc: Tool, arguments: Callable[[str], tuple[str, ...]], kind: str) -> None:
    refused = taktc(*arguments("encoder_decoder"), "--allotments", kind, "--plan", "laminar")
    assert refused.code == 1
    assert "plan 'laminar' cannot run every operator on all accelerators of its stage" in refused.err


MODEL = """\
model m {{
  input x: tensor<8, i8>
  a = op(x) time {{1: 4us}} output 8 B
  b = op(a) time {{{b}: 4us}} output 8 B
  output b
}}
accelerator chip {{ memory = 64 MiB bandwidth = 1 GB/s launch = 1 us peak f32 = 1 TFLOP/s }}
platform p {{ accelerators = 4 of chip }}
"""


def test_the_operator_that_fits_no_stage_is_named() -> None:
    for plan, message in (
        ("stages", "operation 'b' runs on 4 accelerators, and what comes before it leaves 3 of 4"),
        (
            "interleaved",
            "operation 'a' runs on 1 accelerators, most others on blocks of 4: in this plan, unlike 'stages', each",
        ),
    ):
        with pytest.raises(TaktError, match=message) as refused:
            compile_model(Source("m.takt", MODEL.format(b=4)), options=Options(plan=plan, allotments="stage"))  # pyright: ignore[reportArgumentType]
        (diagnostic,) = refused.value.diagnostics
        assert diagnostic.location is not None
        assert "--allotments any" in (diagnostic.hint or "")
    with pytest.raises(TaktError, match="cannot run on 4 accelerators, only on 1") as refused:
        compile_model(Source("m.takt", MODEL.format(b=4)), options=Options(allotments=4))
    assert refused.value.diagnostics[0].hint == (
        "no number suits all operators; with --allotments stage, stages differ in width"
    )
