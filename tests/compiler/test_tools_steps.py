"""taktc --training --microbatches: steps of finite batches on the command line, and what goes together with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passes.choices import ORDERS

Tool = Callable[..., Any]

MODEL = """model mlp {
  input x: tensor<8 x 64, bf16>
  input y: tensor<8 x 64, bf16>
  repeat 4 carry x {
    x = layer(x)
  }
  loss = mse_loss(x, y)
  output loss
}
block layer(x: tensor<s x d, t>) -> z {
  h = linear(x, features = 256)
  g = gelu(h)
  z = linear(g, features = 64, split = "row")
}
accelerator a {
  memory = 4 MiB  bandwidth = 10 GB/s  launch = 1 us
  peak bf16 = 1 TFLOP/s
}
platform four { accelerators = 4 of a }
"""
STEP = ("--training", "adam", "--microbatches", "6", "--effort", "0.05")


@pytest.fixture
def mlp(tmp_path: Path) -> str:
    path = tmp_path / "mlp.takt"
    path.write_text(MODEL)
    return str(path)


def test_training_with_micro_batches_makes_a_step(taktc: Tool, mlp: str) -> None:
    found = taktc(mlp, *STEP, "--quiet")
    assert found.code == 0, found.err
    assert " step of 6, bound " in found.out
    assert 'plan "own"' in found.out
    assert taktc(mlp, *STEP, "--quiet", "--order", "own").out == found.out
    assert taktc(mlp, *STEP, "--quiet", "--objective", "step").out == found.out
    period = taktc(mlp, *STEP, "--quiet", "--objective", "period", "--compile-to", "programs")
    assert " step of " not in period.out
    assert " step of " not in taktc(mlp, "--training", "adam", "--quiet", "--effort", "0.01").out


def test_orders_stages_chunks_and_cuts(taktc: Tool, mlp: str) -> None:
    found = taktc(mlp, *STEP, "--quiet", "--order", "interleaved", "--stages", "2", "--chunks", "2", "--cut", "equal")
    assert found.code == 0, found.err
    assert found.out.count("takt.stage ") == 8
    assert 'plan "interleaved 1F1B", engine "uniform"' in found.out
    found = taktc(mlp, *STEP, "--quiet", "--order", "1f1b*", "--staggered", "--memory", "1MiB")
    assert found.code == 0, found.err
    assert 'plan "1F1B*"' in found.out
    assert "within <memory 1048576>" in found.out
    forward = taktc(mlp, "--order", "gpipe", "--microbatches", "3", "--quiet")
    assert " step of 3, " in forward.out
    assert "input_gradient" not in forward.out


def test_dumps_and_passes_give_the_same_step(taktc: Tool, mlp: str, tmp_path: Path) -> None:
    options = (*STEP, "--order", "zb-h1", "--staggered", "--quiet")
    whole = taktc(mlp, *options, "--dump-phases-to", str(tmp_path / "ir")).out
    dumps = sorted((tmp_path / "ir").glob("*.mlir"))
    assert [d.name.split(".")[2] for d in dumps] == ["model", "moldable", "scheduled"]
    for dump in dumps:
        assert taktc(str(dump), *options).out == whole
    step = 'schedule-step{microbatches=6 order="zb-h1" staggered=true effort=0.05}'
    assert taktc(mlp, "--quiet", "-p", f"expand-training{{optimizer=adam}},annotate-costs,{step}").out == whole


def test_refusals_have_places_and_hints(taktc: Tool, mlp: str) -> None:
    found = taktc(mlp, *STEP, "--order", "gpipe", "--memory", "100kiB")
    assert found.code == 2
    found = taktc(mlp, *STEP, "--order", "gpipe", "--memory", "100KiB")
    assert found.code == 1
    assert "mlp.takt:1:7: error: " in found.err
    assert "hint: " in found.err
    found = taktc(mlp, *STEP, "--order", "zb-v", "--stages", "16")
    assert found.code == 1
    assert "16 stages need as many accelerators, and there are 4" in found.err


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (("--order", "zb-v", "--chunks", "1"), "ZB-V has 2 chunks on a rank, not 1", "leave out the number of chunks"),
        (("--order", "zb-v", "--stages", "1"), "several chunks on a rank take two ranks or more", "two stages or more"),
        (("--order", "interleaved", "--stages", "2", "--chunks", "3", "--cut", "equal"), "4 layers", "--cut balanced"),
        (("--order", "1f1b", "--stages", "2", "--chunks", "9"), "1F1B has 1 chunk on a rank, not 9", "another order"),
        (("--compare", "--stages", "9"), "9 stages need as many accelerators", "another number of stages"),
        (("--stages", "4", "--chunks", "9"), "fewer than 36 chunks", "choose fewer stages or chunks"),
    ],
)
def test_orders_that_do_not_suit(taktc: Tool, mlp: str, options: tuple[str, ...], message: str, hint: str) -> None:
    found = taktc(mlp, *STEP, *options)
    assert found.code == 1
    assert "mlp.takt:1:7: error: " in found.err
    assert message in found.err
    assert hint in found.err.split("hint: ")[1]


def test_a_schedule_is_not_taken_for_another(taktc: Tool, mlp: str, tmp_path: Path) -> None:
    step, period, other = (str(tmp_path / f"{name}.mlir") for name in ("step", "period", "other"))
    assert taktc(mlp, *STEP, "--order", "1f1b", "--quiet", "-o", step).code == 0
    assert taktc(mlp, "--training", "adam", "--effort", "0.05", "--quiet", "-o", period).code == 0
    assert taktc(step, *STEP, "--order", "1f1b", "--quiet").code == 0
    for file, options, message in (
        (step, ("--training", "adam", "--microbatches", "7"), "is a step of 6 micro-batches already, not of 7"),
        (step, ("--order", "gpipe", "--microbatches", "6"), "in the order '1F1B' already, not in 'gpipe'"),
        (period, STEP, "has a schedule with a period already, and a step is asked for"),
    ):
        found = taktc(file, *options, "-o", other)
        assert (found.code, Path(other).exists()) == (1, False)
        assert message in found.err
        assert "hint: compile from the model" in found.err


@pytest.mark.parametrize(
    ("passes", "code", "message"),
    [
        ("schedule-step", 1, "takes a graph at level 'moldable'"),
        ("annotate-costs,schedule-step{max-memory=0}", 1, "max-memory must be at least 1, got 0"),
        ("annotate-costs,schedule-step{order=zbh1}", 2, "order' of pass 'schedule-step' takes one of own, gpipe"),
        ("expand-training,recompute-activations{policy=solver save=-1}", 1, "save must be 0 or more bytes, got -1"),
        ("expand-training,recompute-activations{policy=full save=1}", 1, "and the policy is 'full'"),
    ],
)
def test_pass_options(taktc: Tool, mlp: str, passes: str, code: int, message: str) -> None:
    found = taktc(mlp, "-p", passes)
    assert (found.code, found.out) == (code, "")
    assert message in found.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--order", "1f1b"), "--order needs --microbatches M"),
        ((*STEP, "--order", "1f1b", "--objective", "period"), "--order makes a step, and the objective is the period"),
        ((*STEP, "--plan", "auto"), "--plan is for schedules with a period, not for a step"),
        ((*STEP, "--max-in-flight", "4"), "--max-in-flight is for schedules with a period"),
        ((*STEP, "--allotments", "stage"), "a step has --cut equal"),
        ((*STEP, "--pareto", "period,memory"), "--pareto is about periods"),
        (("--cut", "equal"), "--cut is for a step: give --training and --microbatches, or --order"),
        (("--training", "adam", "--staggered"), "--staggered is for a step"),
        ((*STEP, "--order", "zbh1"), "did you mean 'zb-h1'?"),
    ],
)
def test_usage(taktc: Tool, mlp: str, options: tuple[str, ...], message: str) -> None:
    found = taktc(mlp, *options)
    assert found.code == 2
    assert message in found.err


def test_help_names_all_orders(taktc: Tool) -> None:
    words = "".join(taktc("--help").out.split())
    assert ",".join(ORDERS[1:]) in words
