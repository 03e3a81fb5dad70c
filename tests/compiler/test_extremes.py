"""Transfers that take longer than 64 bits of nanoseconds are avoided, not overflowed."""

from __future__ import annotations

from compiler import compile_model
from compiler.view import view_of
from frontend import Source

MODEL = """
model m {
  a = op() time [3ms] output 1024 GiB
  b = op(a) time [1ms] output 1 KiB
  c = op(a, b) time [1ms] output 1 KiB
  output c
}
accelerator chip { memory = 8000 GiB bandwidth = 1 GB/s launch = 1 us peak f32 = 1 TFLOP/s }
platform p { accelerators = 2 of chip link bus { latency = 1 us bandwidth = 1 B/s } }
"""


def test_a_value_that_takes_ages_stays_where_it_is() -> None:
    view = view_of(compile_model(Source("ages.takt", MODEL)))
    assert view.period == 5_000_000
    assert not view.moves
