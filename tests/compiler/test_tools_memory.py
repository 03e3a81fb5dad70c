"""taktc where memory is short: stages that hold less, and what it says when nothing fits."""

from __future__ import annotations

import json
import re
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
  memory = MEMORY  bandwidth = 10 GB/s  launch = 1 us
  peak bf16 = 1 TFLOP/s
}
platform four { accelerators = 4 of a }
"""
ARGUMENTS = ("--training", "adam", "--quiet", "--effort", "0.1")


@pytest.fixture
def mlp(tmp_path: Path) -> Callable[[str], str]:
    """The path of the model on accelerators of that memory."""

    def write(memory: str) -> str:
        path = tmp_path / "mlp.takt"
        path.write_text(MODEL.replace("MEMORY", memory))
        return str(path)

    return write


def test_what_is_short_and_how_much_would_do(taktc: Tool, mlp: Callable[[str], str]) -> None:
    refused = taktc(mlp("262 KiB"), *ARGUMENTS)
    assert refused.code == 1
    nearest = "in the nearest accelerator 0 needs 265.00 KiB and has 262.00 KiB: 3.00 KiB are missing"
    assert f"error: no schedule was found that fits: {nearest}" in refused.err
    params = "32.00 KiB of parameters, 32.00 KiB of their gradients, 192.00 KiB of optimizer state"
    assert f"note: it would hold {params}, 7.00 KiB of results of 1 micro-batch, 2.00 KiB of inputs" in refused.err
    assert "hint: use more accelerators" in refused.err
    assert "recompute-activations" in refused.err
    found = re.search(r"\((\d+) bytes\) on each accelerator would do, with a period of ([\d.]+) us", refused.err)
    assert found is not None
    done = json.loads(taktc(mlp(f"{found[1]} B"), *ARGUMENTS, "--emit", "json").out)
    assert done["schedule"]["period"] <= float(found[2]) * 1000
    least = taktc(mlp("200 KiB"), *ARGUMENTS).err
    assert "the parameters need 1048576 bytes" in least
    assert f"({found[1]} bytes) on each accelerator would do" in least


def test_a_limit_is_explained_like_memory(taktc: Tool, mlp: Callable[[str], str]) -> None:
    refused = taktc(mlp("1 MiB"), *ARGUMENTS, "--memory", "262KiB")
    assert refused.code == 1
    assert refused.err == taktc(mlp("262 KiB"), *ARGUMENTS).err


def test_the_solver_needs_no_blocks_to_say_what_is_short(taktc: Tool, mlp: Callable[[str], str]) -> None:
    refused = taktc(mlp("262 KiB"), *ARGUMENTS, "--recompute", "solver").err
    assert "1.00 KiB are missing" in refused
    assert "calls no block" not in refused


def test_what_has_no_state_holds_parameters_only(taktc: Tool, mlp: Callable[[str], str]) -> None:
    refused = taktc(mlp("31 KiB"), "--quiet", "--effort", "0.1").err
    assert re.search(r"note: it would hold \d+.\d\d KiB of parameters, \d", refused)
    assert "gradients" not in refused
    assert "recompute" not in refused


def test_less_memory_takes_longer_and_agrees_with_the_simulator(taktc: Tool, mlp: Callable[[str], str]) -> None:
    periods: list[int] = []
    for memory in ("1 MiB", "266 KiB"):
        path = mlp(memory)
        periods.append(json.loads(taktc(path, *ARGUMENTS, "--emit", "json").out)["schedule"]["period"])
        assert "prediction and simulation agree" in taktc(path, *ARGUMENTS, "--simulate", "20").out
    assert periods[0] < periods[1]


def test_a_dump_of_stages_goes_on(taktc: Tool, mlp: Callable[[str], str], tmp_path: Path) -> None:
    path = mlp("266 KiB")
    assert taktc(path, *ARGUMENTS, "--dump-phases-to", str(tmp_path / "ir")).code == 0
    (staged,) = (tmp_path / "ir").glob("*staged*.mlir")
    assert taktc(str(staged), *ARGUMENTS).code == 0
    by_passes = "partition-stages{fit=true},schedule-periodic{fit=true},verify-schedule"
    moldable = next((tmp_path / "ir").glob("*moldable*.mlir"))
    assert taktc(str(moldable), "--quiet", "-p", by_passes).code == 0


TIED = """model tied {
  input ids: tensor<1 x ROWS, i32>
  input labels: tensor<1 x ROWS, i32>
  x = embedding(ids, vocab = 96, dim = 64) group "table"
  repeat LAYERS carry x { h = linear(x, features = 128)  g = gelu(h)  y = linear(g, features = 64)  x = add(x, y) }
  logits = linear(x, features = 96) group "table"
  loss = cross_entropy(logits, labels)
  output loss
}
accelerator a { memory = MEMORY  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s  peak f32 = 1 TFLOP/s }
platform four {
  accelerators = 4 of a
  transfers = blocking
  link bus { latency = 0 ns  bandwidth = GBS GB/s }
}
"""


@pytest.fixture
def tied(tmp_path: Path) -> Callable[[int, int, int, int], str]:
    """The path of a model with so many layers on accelerators of that many bytes, and links of so many GB/s."""

    def write(layers: int, memory: int, rows: int, link: int) -> str:
        path = tmp_path / "tied.takt"
        text = TIED.replace("LAYERS", str(layers)).replace("MEMORY", f"{memory} B")
        path.write_text(text.replace("ROWS", str(rows)).replace("GBS", str(link)))
        return str(path)

    return write


def test_what_a_schedule_holds_is_enough_for_it(taktc: Tool, tied: Callable[[int, int, int, int], str]) -> None:
    """Its operators run on more accelerators than the fastest ones do, so that less is sent, and less lies on each."""
    options = (*ARGUMENTS, "--stages", "1")
    first = json.loads(taktc(tied(1, 2**30, 4, 1), *options, "--emit", "json").out)
    holds = max(each["peak_memory"] for each in first["accelerators"])
    second = taktc(tied(1, holds, 4, 1), *options, "--emit", "json")
    assert second.code == 0, second.err
    assert json.loads(second.out)["schedule"]["period"] == first["schedule"]["period"]


def test_what_would_do_has_the_stages_asked_for(taktc: Tool, tied: Callable[[int, int, int, int], str]) -> None:
    options = (*ARGUMENTS, "--stages", "4", "--recompute", "selective")
    refused = taktc(tied(3, 100_000, 8, 100), *options).err
    assert "are missing" in refused
    found = re.search(r"\((\d+) bytes\) on each accelerator would do", refused)
    assert found is None or taktc(tied(3, int(found[1]), 8, 100), *options).code == 0


LOSSES = """model losses {
  input x: tensor<4 x 16, bf16>
  input y: tensor<4 x 16, bf16>
  repeat 3 carry x { x = layer(x) }
  one = mse_loss(x, y)
  z = linear(x, features = 16)
  k = tanh(z)
  two = mse_loss(k, y)
  output one, two
}
block layer(x: tensor<s x d, t>) -> y {
  h = linear(x, features = 2 * d)
  g = gelu(h)
  y = linear(g, features = d)
}
accelerator a { memory = 34559 B  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }
platform three {
  accelerators = 3 of a
  transfers = blocking
  link bus { latency = 0 ns  bandwidth = 10 GB/s  duplex = half }
}
"""


def test_stages_are_as_many_as_asked_for_where_a_micro_batch_turns_twice(taktc: Tool, tmp_path: Path) -> None:
    path = tmp_path / "losses.takt"
    path.write_text(LOSSES)
    done = taktc(str(path), *ARGUMENTS, "--recompute", "full", "--stages", "5", "--emit", "json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["stages"]) == 5


def test_a_limit_is_kept_as_memory_of_the_platform_is(taktc: Tool, tmp_path: Path) -> None:
    """Stages are chosen, and their starts moved, to keep --memory; as early as they can be, they hold more."""
    rows = "".join(f"  a{n} = op(a{n - 1}) time [10us] params 4 KiB output 64 KiB\n" for n in range(1, 6))
    model, machine = tmp_path / "m.takt", tmp_path / "p.takt"
    model.write_text(
        "model m {\n  input x: tensor<8 x 64, bf16>\n  a0 = op(x) time [0us] params 8 B output 8 B\n"
        f"{rows}  output a5\n}}\n"
    )
    machine.write_text(
        "accelerator chip { memory = 1 GiB bandwidth = 10 GB/s launch = 1 us peak bf16 = 1 TFLOP/s }\n"
        "platform five { accelerators = 5 of chip }\n"
    )
    arguments = (str(model), "--platform", str(machine), "--training", "none", "--plan", "stages", "--quiet")
    plain = taktc(*arguments, "--emit", "summary")
    kept = taktc(*arguments, "--emit", "summary", "--memory", "400KiB")
    assert plain.code == kept.code == 0, kept.err
    assert "at most 584.00 KiB" in plain.out
    assert "at most 392.00 KiB" in kept.out
    assert "period       30 us" in plain.out
    assert "period       30 us" in kept.out
