"""A real run in processes: a small model of the GPT kind with a skip, on allotments of one and two accelerators."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from compiler.pipeline import Options, new_context, run_pipeline
from compiler.runtime.job import Settings, write_job
from compiler.runtime.prepare import job_of
from dialects.programs import ALL_GATHER, COMPUTE, RECV, SEND
from frontend import Source, load
from passes.lower_to_programs import lower_to_programs

pytestmark = pytest.mark.torch

MODEL = """
import "takt/accelerators.takt"
model gpt {
  input tokens: tensor<2 x 8, i32>
  input labels: tensor<2 x 8, i32>
  e = embedding(tokens, vocab = 50, dim = 24) time [2us] group "tied"
  first = position_embedding(e) time [1us]
  x = gelu(first) time [1us]
  repeat 2 carry x { x = decoder(x) }
  skip = residual(x, first) time [1us]
  n = layer_norm(skip) time [1us]
  logits = linear(n, features = 50) time [2us] group "tied"
  loss = cross_entropy(logits, labels) time [1us]
  output logits, loss
}
block decoder(x: tensor<b x s x d, t>) -> y {
  an = layer_norm(x) time {2: 1us}
  q = linear(an, features = d, bias = true) time {2: 1us}
  k = linear(an, features = d, bias = true) time {2: 1us}
  v = linear(an, features = d, bias = true) time {2: 1us}
  a = attention(q, k, v, heads = 3, causal = true) time {2: 2us}
  o = linear(a, features = d, bias = true, split = "row") time {2: 1us}
  h = residual(x, o) time {2: 1us}
  mn = layer_norm(h) time {2: 1us}
  up = linear(mn, features = 4 * d, bias = true) time {2: 2us}
  act = gelu(up) time {2: 1us}
  down = linear(act, features = d, bias = true, split = "row") time {2: 2us}
  y = residual(h, down) time {2: 1us}
}
platform board {
  accelerators = 4 of pebble
  link board { latency = 10 ns  bandwidth = 1 GB/s }
}
"""


def test_processes_give_what_the_unpipelined_model_gives(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from compiler.runtime.launch import launch
    from compiler.runtime.reference import compare

    module = run_pipeline(new_context(), load(Source("gpt.takt", MODEL)), options=Options(plan="stages"))
    lower_to_programs(module, 5)
    job, programs = job_of(module, Settings(emulate=False, seed=11))
    assert {len(o.turns[0]) for o in job.operators} == {1, 2}
    assert {kind for rows in programs.values() for kind in rows[:, 0].tolist()} >= {COMPUTE, SEND, RECV, ALL_GATHER}
    assert any(value.sharded for o in job.operators for value in o.results)
    write_job(tmp_path, job, programs)
    launch(tmp_path, job)
    found = compare(tmp_path, job)
    assert found.agrees, found
    assert found.compared == 2 * 5
    # Sums in another order: what is compared was not computed in one way twice.
    assert 0 < found.error < 2e-6


def test_processes_train_as_torch_does(taktc: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model, figures = tmp_path / "gpt.takt", tmp_path / "f.json"
    model.write_text(MODEL.replace("accelerators = 4", "accelerators = 3"))
    words = ["--real", "--training", "adam", "--microbatches", "2", "--steps", "2", "--effort", "0.1"]
    result = taktc("run", model, *words, "--json", figures)
    assert (result.code, result.err) == (0, "")
    found = json.loads(figures.read_text())
    assert found["outputs"]["compared"] == 2 * 4
    for what in ("gradients", "parameters"):
        # Of each of two blocks two norms and six products with biases; the table, positions and the last norm.
        assert found[what] == {"agree": True, "compared": 31, "missing": 0, "error": ANY, "tolerance": 1e-5}
        assert 0 < found[what]["error"] < 2e-6
    assert "31 accumulated gradients agree with the unpipelined model" in result.out
    assert "31 parameters after the last step agree with the unpipelined model" in result.out
