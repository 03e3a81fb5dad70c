"""Training steps for torch.distributed.pipelining: cells, their messages, PyTorch's reference files, real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from compiler import compile_model
from compiler.pipeline import Options
from compiler.runtime.torch_pipelining import check
from compiler.runtime.torch_pipelining import parse as parse_cells
from compiler.targets.cells import Cell, Malformed, in_rounds, merged, parse, places, text_of, with_messages
from compiler.targets.torch_csv import emit
from dialects.diagnostics import TaktError
from frontend import Source

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "../shared/instances/pytorch-pipelining"
Operators = Mapping[str, tuple[str, Sequence[str]]]

CHAIN: Operators = {
    "a": ("linear", ["x"]),
    "b": ("tanh", ["a"]),
    "c": ("linear", ["b"]),
    "d": ("tanh", ["c"]),
    "e": ("linear", ["d"]),
    "f": ("linear", ["e"]),
    "l": ("loss", ["f", "y"]),
}
SKIP: Operators = CHAIN | {"f": ("add", ["e", "b"]), "g": ("linear", ["f"]), "l": ("loss", ["g", "y"])}
SKIP = {name: SKIP[name] for name in "abcdefgl"}
WRITTEN = {"loss": "mse_loss", "linear": "linear"}
CASES: dict[str, tuple[Operators, Options]] = {
    "chain": (CHAIN, Options(plan="stages", training="sgd")),
    "skip": (SKIP, Options(plan="stages", training="sgd")),
    "turns": (CHAIN, Options(plan="stages", training="sgd", stages=4)),
    "zb-h1": (CHAIN, Options(training="sgd", microbatches=4, order="zb-h1", stages=2)),
    "zb-v": (SKIP, Options(training="sgd", microbatches=4, order="zb-v", stages=2)),
    "own": (SKIP, Options(training="sgd", microbatches=4, stages=2)),
}


@cache
def scheduled(name: str) -> ModuleOp:
    operators, options = CASES[name]
    lines = [f"input {x}: tensor<2 x 8, f32>" for x in ("x", "y")]
    for op, (kind, reads) in operators.items():
        more = ", features = 8, bias = false" if kind == "linear" else ""
        lines.append(f"{op} = {WRITTEN.get(kind, kind)}({', '.join(reads)}{more})")
    text = "model m {\n  " + "\n  ".join([*lines, "output l"]) + "\n}\n"
    board = (
        'import "takt/accelerators.takt"\nplatform p {\n  accelerators = 2 of pebble\n'
        "  link board { latency = 5 us  bandwidth = 40 GB/s }\n}\n"
    )
    return compile_model(Source("m.takt", text), platform=Source("p.takt", board), options=options)


def reference(name: str) -> str:
    file = GOLDEN / name
    if not file.exists():
        pytest.skip("the schedules of torch are not in ../shared/instances")
    return file.read_text()


# --- PyTorch's reference files ---------------------------------------------------------------


def test_our_messages_are_those_of_the_reference_file():
    rows = [merged(row) for row in parse(reference("zb1p_2rank_2stagep_compute.csv"))]
    found = with_messages(in_rounds(rows), places(rows))
    assert text_of(found, apart="B", whole="BW") == reference("zb1p_2rank_2stagep_comms.csv")


def test_reference_files_are_read_and_written_alike():
    text = reference("zb1p_2rank_2stagep_comms.csv")
    rows = [[cell for slot in row for cell in slot] for row in parse(text)]
    assert text_of(rows, apart="B", whole="BW") == text
    assert check(rows, 4, 8) == {0: 0, 2: 0, 1: 1, 3: 1}


def test_cells_that_overlap_are_handed_on_one_by_one():
    rows = parse(reference("dualpipev_4rank_10mb.csv"))
    found = with_messages(in_rounds(rows), places(rows))
    assert check(found, 8, 10) == {0: 0, 7: 0, 1: 1, 6: 1, 2: 2, 5: 2, 3: 3, 4: 3}
    assert sum(cell.kind == "SEND_B" for row in found for cell in row) == 6 * 10


# --- from schedules --------------------------------------------------------------------------


def forms(name: str, microbatches: int = 4) -> tuple[str, str]:
    compute, comms = (
        emit(scheduled(name), microbatches=microbatches, form=f) for f in ("compute-only", "compute-comms")
    )
    return compute, comms


@pytest.mark.parametrize("name", CASES)
def test_both_forms_pass_the_check(name: str):
    compute, comms = (parse_cells(text) for text in forms(name))
    stages = len(json.loads(emit(scheduled(name), form="stages"))["stages"])
    assert check(compute, stages, 4) == check(comms, stages, 4)
    assert [[c for c in row if "_" not in c.kind] for row in comms] == compute


def test_a_stage_goes_forward_before_it_comes_back():
    text, _ = forms("chain", 3)
    first, second = text.splitlines()
    assert second.split(",")[:2] == ["1F0", "1B0"] or second.split(",")[:2] == ["1F0", "1I0"]
    assert first.split(",").index("0F0") < first.split(",").index("0B0")


def test_gradients_pass_through_stages_without_backward_operators():
    text = """model m {
  input x: tensor<2 x 8, f32>
  a = linear(x, features = 8) time [9us]
  b = linear(a, features = 8) time [9us]
  c = residual(b, b) time [9us]
  d = linear(c, features = 8) time [9us]
  output d
}
accelerator chip { memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us  peak f32 = 1 TFLOP/s }
platform p { accelerators = 4 of chip }
"""
    module = compile_model(Source("m.takt", text), options=Options(training="none", order="1f1b", microbatches=2))
    rows = emit(module, microbatches=2).splitlines()
    assert rows[2] == "2F0,2F1,2B0,2B1"


def test_wrong_numbers_of_micro_batches_are_refused():
    with pytest.raises(TaktError, match="0 micro-batches: there must be at least 1"):
        emit(scheduled("chain"), microbatches=0)
    with pytest.raises(TaktError, match="the schedule is a step of 4 micro-batches, not of 5"):
        emit(scheduled("zb-h1"), microbatches=5)


def test_cells_of_a_known_order_are_those_of_its_definition():
    """Of ZB-H1 on two ranks: the first runs W right behind B, the last one micro-batch later."""
    rows, _ = forms("zb-h1")
    found = [re.sub(r"\d+([A-Z])(\d+)", r"\1\2", row) for row in rows.splitlines()]
    assert found == ["F0,F1,I0,W0,F2,I1,W1,F3,I2,W2,I3,W3", "F0,I0,F1,I1,W0,F2,I2,W1,F3,I3,W2,W3"]


# --- orders ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0B0\n1B0,1F0\n", "ranks wait for each other for ever: 0B0, 1B0"),
        ("0F0\n0F1\n", "stage 0 is on the ranks 0 and 1"),
        ("1F0\n", "no rank runs stage 0"),
        ("0F0,0X0\n", "rank 0: '0X0' is no cell"),
    ],
)
def test_malformed_rows_are_refused(text: str, message: str):
    with pytest.raises(Malformed, match=re.escape(message)):
        list(in_rounds(parse(text)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_is_free_of_deadlock(data: st.DataObject):
    """Random orders of random pipelines, made by running whatever is ready; the check replays them with rendezvous."""
    stages, ranks, count = (data.draw(st.integers(1, n)) for n in (4, 3, 3))
    home = {s: data.draw(st.integers(0, ranks - 1)) for s in range(stages)}
    used = sorted(set(home.values()))
    home = {s: used.index(r) for s, r in home.items()}
    waiting = {Cell(s, kind, i) for s in home for i in range(count) for kind in "FIW"}
    order: list[Cell] = []
    while waiting:

        def ready(cell: Cell) -> bool:
            s, kind, i = cell
            before = {"F": [(s - 1, "F")], "I": [(s, "F"), (s + 1, "I")], "W": [(s, "I")]}[kind]
            return all(Cell(t, k, i) in order for t, k in before if t in home)

        cell = data.draw(st.sampled_from(sorted(filter(ready, waiting))))
        waiting.remove(cell)
        order.append(cell)
    rows = with_messages(order, home)
    assert check(rows, stages, count) == home
    compute = [[c for c in order if home[c.stage] == r] for r in range(len(used))]
    assert check(compute, stages, count) == home


# --- torch -----------------------------------------------------------------------------------


@pytest.mark.torch
def test_gradients_on_processes_are_those_of_the_whole_model(tmp_path: Path):
    pytest.importorskip("torch")
    cases: list[dict[str, Any]] = []
    for name, (operators, _) in CASES.items():
        lines = json.loads(emit(scheduled(name), form="stages"))["stages"]
        for text in forms(name, 4):
            cases.append({"csv": text, "stages": lines, "microbatches": 4, "operators": operators})
    if GOLDEN.exists():
        cases.append(_of_reference())
    for case in cases:
        case["inputs"] = ["x", "y"]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, str(Path(__file__).with_name("gloo_training.py")), tmp_path / "cases.json", tmp_path]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, err[-4000:]
    differences = json.loads(out)
    assert len(differences) == len(cases)
    assert max(differences) < 1e-5


def _of_reference() -> dict[str, Any]:
    """PyTorch's order of four stages on two ranks, with the messages that we add."""
    rows = [merged(row) for row in parse(reference("zb1p_2rank_2stagep_compute.csv"))]
    text = text_of(with_messages(in_rounds(rows), places(rows)))
    names = [["a", "b"], ["c", "d"], ["e"], ["f", "l"]]
    lines = [
        {
            **{"stage": s, "rank": s % 2, "operators": own, "returns": own[-1:]},
            "inputs": ["x"] if s == 0 else ["y"] if s == 3 else [],
            "receives": names[s - 1][-1:] if s else [],
        }
        for s, own in enumerate(names)
    ]
    return {"csv": text, "stages": lines, "microbatches": 8, "operators": CHAIN}
