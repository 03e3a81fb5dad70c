"""The benchmark of training steps: closed forms, and the rows of the zero-bubble paper."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from suites import megatron, memory, models, periods, zero_bubble
from suites.idle import busiest, split
from suites.instances import ROOT
from suites.table import Options

from passes.scheduling.steps.known import KNOWN

QUICK = Options(quick=True, seconds=0.2, seed=0)

ROW = {
    "model": "1.5B",
    "p_stages": 8,
    "m_microbatches": 24,
    "T_F_us": 18522,
    "T_B_us": 18086,
    "T_W_us": 9337,
    "T_comm_us": 601,
    "layers": 24,
    "bubble_1F1B": 0.2431,
    "bubble_1F1B_interleaved": 0.1055,
    "bubble_ZB_H1": 0.1585,
    "bubble_ZB_H2": 0.1083,
    "bubble_ZB_1p": 0.1585,
    "bubble_ZB_2p": 0.0433,
}
"""The first of the twelve rows."""


def test_closed_forms_are_met() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--quick", "--only", "closed_forms", "--json"]
    ((table, compiled),) = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ).values()
    assert compiled["notes"] == ["0 of 10 rows differ from their formulas, or from step to step."]
    assert table["notes"] == [f"0 of {len(table['rows'])} rows differ from their formulas on any rank."]
    assert {row["schedule"] for row in table["rows"]} == set(KNOWN)
    for row in table["rows"]:
        assert (row["idle us"], row["held on ranks 0, p-1"]) == (row["by formula"], row["held by formula"])


def test_a_row_of_the_zero_bubble_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "zero-bubble"
    folder.mkdir()
    text = "\n".join(",".join(map(str, line)) for line in (ROW.keys(), ROW.values()))
    (folder / "iclr24_settings_and_bubble_rates.csv").write_text(text)
    monkeypatch.setenv("TAKT_INSTANCES", str(tmp_path))
    (table,) = zero_bubble.run(QUICK)
    (row,) = table.as_data()["rows"]
    assert table.notes[0].startswith("4 of 4")
    for name in ("1F1B", "1F1B-I", "ZB-H1", "ZB-H2"):
        assert row[name] == row[f"{name} paper"]
    assert row["1F1B-I, all waits"] == 0.1090, "what the script behind the paper leaves out"
    assert (row["ZB-1p paper"], row["ZB-2p paper"]) == (0.1585, 0.0433)


def test_the_twelve_rows_of_the_zero_bubble_paper() -> None:
    if not (ROOT / "../shared/instances/zero-bubble").is_dir():
        pytest.skip("rows of the paper are not in ../shared/instances")
    (table,) = zero_bubble.run(Options(quick=False, seconds=0.2, seed=0))
    assert len(table.rows) == 12
    assert table.notes[0].startswith("48 of 48")


def test_absent_rows_are_said_to_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKT_INSTANCES", str(tmp_path))
    (table,) = zero_bubble.run(QUICK)
    assert table.columns == ("skipped",)


CHAIN = """\
model m {
  input t: tensor<4 x 32, bf16>
  input y: tensor<4 x 32, bf16>
  a = linear(t, features = 64)
  b = relu(a)
  c = linear(b, features = 32)
  loss = mse_loss(c, y)
  output loss
}
"""
MACHINE = """\
accelerator chip { memory = 1 MiB bandwidth = 1 GB/s launch = 1 us peak bf16 = 1 TFLOP/s }
platform two { accelerators = 2 of chip link bus { latency = 1 us bandwidth = 10 GB/s } }
"""


def test_period_over_memory_begins_at_the_least(tmp_path: Path) -> None:
    for name, text in (("m.takt", CHAIN), ("p.takt", MACHINE)):
        (tmp_path / name).write_text(text)
    case = memory.Case("chain", str(tmp_path / "m.takt"), str(tmp_path / "p.takt"), (1e-9, 1))
    least, most = memory.sweep(case)
    assert (least.memory < most.memory, most.memory) == (True, 2**30)
    assert least.fullest <= least.memory
    assert most.bound <= most.period <= least.period
    assert least.bound <= least.period
    drawn = memory.picture(case.title, [least, most])
    root = ElementTree.fromstring(drawn)
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 4
    assert drawn == memory.picture(case.title, [least, most])


def test_measured_steps_and_bytes_of_megatron() -> None:
    # The smallest of four models; benchmarks/training.py prints all. docs/training.md states the errors.
    times, memory = megatron.run(QUICK)
    assert [(row[1], row[3], row[4]) for row in times.rows] == [
        ("full", 1.53, 7.5),
        ("selective, sequence parallel", 1.13, 2.3),
    ]
    (row,) = memory.rows
    assert row == ("22B", 45.6, 45.56, 57.75, 59.25, 10.12, 9.56, 7.79, 7.64)
    assert memory.notes[0].startswith("greatest error 5.9 %")


def test_periods_of_equal_stages() -> None:
    (table,) = periods.run(QUICK)
    for row in table.as_data()["rows"]:
        assert {row[name] for name in (*KNOWN, "ours", "bound")} == {30.0}
        assert row["ours, bytes"] <= row["bytes of 1F1B"]


def test_a_step_of_a_model_is_split_into_its_parts() -> None:
    made, refused = models.measure(models.Case("mixtral_8x7b", "dgx_a100_16", 2, layers=2), 0.01)
    assert {one.name for one in made} | set(refused) > set(KNOWN)
    for one in made:
        p = busiest(one.view)
        parts = split(one.view, p)
        assert min(vars(parts).values()) >= 0
        assert sum(vars(parts).values()) == one.view.pattern
        assert parts.work + parts.optimizer == one.view.load[p] * one.view.microbatches
