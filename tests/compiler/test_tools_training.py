"""taktc --training: a training schedule from a model, its dumps, its summary, and what refuses it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tool = Callable[..., Any]

MODEL = """model mlp {
  input x: tensor<8 x 64, bf16>
  input y: tensor<8 x 64, bf16>
  repeat 2 carry x {
    h = linear(x, features = 256)
    g = gelu(h)
    x = linear(g, features = 64, split = "row")
  }
  loss = mse_loss(x, y)
  output loss
}
accelerator a {
  memory = 4 MiB  bandwidth = 10 GB/s  launch = 1 us
  peak bf16 = 1 TFLOP/s
}
platform four { accelerators = 4 of a }
"""
CHIPS = MODEL[MODEL.index("\naccelerator") :]
EFFORT = ("--effort", "0.1")


@pytest.fixture
def mlp(tmp_path: Path) -> str:
    path = tmp_path / "mlp.takt"
    path.write_text(MODEL)
    return str(path)


def test_summary_and_simulation(taktc: Tool, mlp: str) -> None:
    found = taktc(mlp, "--training", "adam", "--simulate", "40", *EFFORT)
    assert found.code == 0, found.err
    assert "prediction and simulation agree" in found.out
    summary = taktc(mlp, "--training", "momentum", "--emit", "summary", *EFFORT).out
    words = " ".join(summary.split())
    assert "training forward and backward, momentum in mixed precision; its step, once a batch, is not in" in words
    without = taktc(mlp, "--training", "none", "--emit", "summary", *EFFORT).out
    assert " of parameters and gradients as placed" in without
    assert "without an optimizer\n" in without
    assert "training" not in taktc(mlp, "--emit", "summary", *EFFORT).out


def test_dumps_go_on_from_every_level(taktc: Tool, mlp: str, tmp_path: Path) -> None:
    options = ("--training", "adam", "--quiet", *EFFORT)
    whole = taktc(mlp, *options, "--dump-phases-to", str(tmp_path / "ir")).out
    dumps = sorted((tmp_path / "ir").glob("*.mlir"))
    assert [d.name.split(".")[2] for d in dumps] == ["model", "moldable", "staged", "scheduled"]
    for dump in dumps:
        assert "training <adam, mixed>" in dump.read_text()
        assert taktc(str(dump), *options).out == whole
    by_passes = taktc(mlp, "--quiet", "-p", "expand-training{optimizer=adam},annotate-costs").out
    assert by_passes == taktc(mlp, *options, "--compile-to", "moldable").out


def test_tied_parameters_are_no_reason_for_one_place(taktc: Tool, tmp_path: Path) -> None:
    path = tmp_path / "tied.takt"
    path.write_text(MODEL.replace('features = 64, split = "row")', 'features = 64, split = "row") group "tied"'))
    options = (str(path), "--training", "adam", "--quiet", *EFFORT)
    groups = {
        kind: set(re.findall(r"takt.optimizer_step.*(group \"[^\"]*\")", taktc(*options, *how).out))
        for kind, how in (("copies", ()), ("colocate", ("--tie", "colocate")))
    }
    assert groups == {
        "copies": {f'group "{name}"' for name in ("h.0", "x.0", "h.1", "x.1")},
        "colocate": {f'group "{name}"' for name in ("h.0", "tied", "h.1")},
    }
    found = taktc(str(path), "--tie", "colocate")
    assert (found.code, "give --training too" in found.err) == (2, True)


def test_asynchronous_training_says_what_its_versions_hold(taktc: Tool, mlp: str, tmp_path: Path) -> None:
    words = " ".join(taktc(mlp, "--training", "sgd", "--asynchronous", "--emit", "summary", *EFFORT).out.split())
    assert re.search(
        r"parameters updated after every micro-batch, at most \d+ versions at once: [\d.]+ KiB more", words
    )
    moldable = taktc(mlp, "--training", "sgd", "--asynchronous", "3", "--compile-to", "moldable").out
    assert "training <sgd, mixed, asynchronous 3>" in moldable
    assert "version [" in moldable
    assert "version [" not in taktc(mlp, "--training", "sgd", "--compile-to", "moldable").out
    path = tmp_path / "moldable.mlir"
    path.write_text(moldable)
    found = taktc(str(path), "--training", "sgd", "--asynchronous", "2")
    assert (found.code, "updated every 3 micro-batches already" in found.err) == (1, True)
    for options, expected in (
        (("--asynchronous",), "give --training too"),
        (("--training", "none", "--asynchronous"), "without an optimizer nothing is updated"),
        (("--training", "sgd", "--asynchronous", "--objective", "step", "--microbatches", "4"), "leave out --asynch"),
        (("--training", "sgd", "--asynchronous", "--microbatches", "4"), "leave out --asynch"),
    ):
        assert expected in " ".join(taktc(mlp, *options).err.split())


def test_graphs_that_cannot_become_training_graphs(taktc: Tool, mlp: str, tmp_path: Path) -> None:
    moldable = tmp_path / "m.mlir"
    moldable.write_text(taktc(mlp, "--compile-to", "moldable").out)
    found = taktc(str(moldable), "--training", "adam")
    assert found.code == 1
    assert "a forward graph at level 'moldable', past 'model'" in found.err
    trained = tmp_path / "t.mlir"
    trained.write_text(taktc(mlp, "--compile-to", "moldable", "--training", "adam").out)
    found = taktc(str(trained), "--training", "sgd")
    assert found.code == 1
    assert "a training graph for 'adam' already, not 'sgd'" in found.err
    assert taktc(mlp, "--training", "lion").code == 2


LAYER = """  h = linear(x, features = 256)
    g = gelu(h)
    x = linear(g, features = 64, split = "row")
"""
BLOCKS = "block layer(x: tensor<8 x 64, bf16>) -> x2 {\n" + LAYER.replace("x =", "x2 =") + "}\n"
BLOCKS += MODEL.replace(LAYER, "  x = layer(x)\n")


@pytest.fixture
def blocks(tmp_path: Path) -> str:
    path = tmp_path / "blocks.takt"
    path.write_text(BLOCKS)
    return str(path)


def test_recomputation(taktc: Tool, blocks: str, tmp_path: Path) -> None:
    options = ("--training", "adam", "--quiet", *EFFORT)
    whole = taktc(blocks, *options, "--recompute", "full", "--dump-phases-to", str(tmp_path / "ir")).out
    assert "takt.recompute" in whole
    for dump in sorted((tmp_path / "ir").glob("*.mlir"))[1:]:
        assert taktc(str(dump), *options, "--recompute", "full").out == whole
    summary = " ".join(taktc(blocks, *options, "--recompute", "full", "--emit", "summary").out.split())
    assert "recomputed 4 operators of the forward pass, " in summary
    by_passes = taktc(blocks, "--quiet", "-p", "expand-training,recompute-activations{policy=full},annotate-costs").out
    assert by_passes == taktc(blocks, *options, "--recompute", "full", "--compile-to", "moldable").out


def test_dumps_go_on_where_nothing_is_worth_computing_again(taktc: Tool, tmp_path: Path) -> None:
    path, dumps = tmp_path / "m.takt", tmp_path / "ir"
    path.write_text(f"model m {{ input x: tensor<8 x 8, bf16> y = linear(x, features = 8) output y }}{CHIPS}")
    options = ("--training", "none", "--recompute", "selective", "--microbatches", "2", "--quiet", *EFFORT)
    whole = taktc(str(path), *options, "--dump-phases-to", str(dumps)).out
    for dump in sorted(dumps.glob("*.mlir"))[:2]:
        _, *command = shlex.split(dump.read_text().partition("\n")[0].removeprefix("// "))
        assert ("--recompute" in command) == (".model." in dump.name)
        assert taktc(*command, "--quiet").out == whole


def test_recomputation_that_makes_a_schedule_fit(taktc: Tool, tmp_path: Path) -> None:
    path = tmp_path / "one.takt"
    path.write_text(BLOCKS.replace("8 x 64", "256 x 64").replace("= 4 of a", "= 1 of a"))
    options = (str(path), "--training", "sgd", "--quiet", *EFFORT)
    for memory, policy in (("4MiB", "none"), ("1120KiB", "selective"), ("1000KiB", "full")):
        limited = (*options, "--memory", memory)
        found = taktc(*limited, "--recompute", "solver")
        assert found.code == 0, found.err
        assert found.out == taktc(*limited, "--recompute", policy).out
        assert ("takt.recompute" in found.out) == (policy != "none")
    assert taktc(*options, "--memory", "1000KiB").code == 1
    assert taktc(*options, "--memory", "1KiB", "--recompute", "solver").code == 1


def test_graphs_that_compute_nothing_again(taktc: Tool, blocks: str, tmp_path: Path) -> None:
    found = taktc(blocks, "--recompute", "full")
    assert found.code == 1
    assert "@mlp has no backward pass, for which values could be computed again" in found.err
    found = taktc(blocks, "--training", "adam", "--recompute", "solver", "--compile-to", "moldable")
    assert found.code == 2
    assert "--recompute solver compares schedules" in found.err
    found = taktc(blocks, "--training", "adam", "--recompute", "solver", "--pareto", "period,memory")
    assert found.code == 2
    assert "--recompute solver chooses one schedule, and --pareto asks for several" in found.err
    moldable = tmp_path / "m.mlir"
    for policy, wanted in (("none", "full"), ("full", "none")):
        options = ("--training", "adam", "--quiet")
        moldable.write_text(taktc(blocks, *options, "--recompute", policy, "--compile-to", "moldable").out)
        found = taktc(str(moldable), *options, "--recompute", wanted)
        assert found.code == 1
        assert ("computes nothing again" if policy == "none" else "computes values again already") in found.err


def test_a_target_that_does_not_train(taktc: Tool, mlp: str) -> None:
    found = taktc(mlp, "--training", "adam", "--emit", "vllm-partition", *EFFORT)
    assert found.code == 1
    assert "@mlp is a training graph, and vLLM does not train" in found.err


@pytest.mark.torch
def test_what_a_real_run_cannot_train(taktc: Tool, mlp: str) -> None:
    pytest.importorskip("torch")
    text = MODEL.replace("output loss", "twice = mul(loss, loss)\n  output twice, loss")
    Path(mlp).write_text(text)
    found = taktc("run", mlp, "--training", "adam", "--real", *EFFORT)
    assert found.code == 1
    assert "loss 'loss' counts more than once, as other losses are made of it" in found.err
    assert "leave it, or what is made of it, out of the outputs" in found.err
    assert "loss = mse_loss(x, y)" in found.err
