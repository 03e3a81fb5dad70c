"""Training runs in one process: accumulated gradients, and parameters after steps, beside torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compiler.runtime.job import Job, Rows
from dialects.programs import ALL_GATHER, COPY

pytestmark = pytest.mark.torch

Placed = Callable[..., tuple[Job, dict[int, Rows]]]

MLP = """model mlp {
  input x: tensor<3 x 5, bf16>
  a = linear(x, features = 7, bias = true)
  b = gelu(a)
  c = linear(b, features = 6, split = "row", bias = true)
  d = layer_norm(c)
  e = linear(d, features = 5)
  y = tanh(e)
  output y, d
}"""

TIED = """model tied {
  input source: tensor<2 x 5, i32>
  input target: tensor<2 x 3, i32>
  input labels: tensor<2 x 3, i32>
  x = embedding(source, vocab = 17, dim = 12) group "table"
  p = position_embedding(x)
  enc = encoder(p, heads = 3)
  t = embedding(target, vocab = 17, dim = 12) group "table"
  dec = cross_decoder(t, enc, heads = 3)
  logits = linear(dec, features = 17) group "table"
  loss = cross_entropy(logits, labels)
  output loss, logits
}"""

MIXED = """model mixed {
  input x: tensor<1 x 6 x 8, f32>
  input w: tensor<1 x 6 x 8, f32>
  h = rms_norm(x)
  q = linear(h, features = 8, bias = true)
  k = linear(h, features = 4, bias = true)
  r = rotary(q)
  a = attention(r, k, k, heads = 4, kv_heads = 2, causal = true)
  s = residual(a, x)
  routes = router(s, experts = 4, top_k = 2)
  m = experts(s, routes, experts = 4, top_k = 2, hidden = 6)
  u, v = split(m, parts = 2, axis = 2)
  z = mul(u, v)
  one = mse_loss(m, w)
  flat = reshape(z, shape = [24])
  two = reduce(flat, axis = 0, kind = "mean")
  total = add(one, two)
  output total, z
}"""

IMAGES = """model images {
  input x: tensor<2 x 3 x 8 x 8, f32>
  a = conv2d(x, channels = 4, kernel = 3, padding = 1, bias = true)
  b = batch_norm(a)
  c = relu(b)
  d = max_pool(c, kernel = 2, stride = 2)
  e = conv2d(d, channels = 6, kernel = 3, groups = 2)
  f = sigmoid(e)
  g = global_avg_pool(f)
  h = op(g) time [1us] params 64 B output 10 B
  i = op(h, g) time [1us] params 64 B output 7 B
  output i
}"""

RUNS: dict[str, dict[str, Any]] = {
    "chain": {"text": MLP, "where": {"": [0], "c": [1], "e": [2], "y": [2]}},
    "unequal": {"text": MLP, "where": {"": [0], "b": [1, 2], "c": [1, 2, 3], "d": [4, 5], "e": [0, 1]}},
    "copies": {"text": MLP, "where": {"": [0, 1], "c": [[2], [3]], "d": [[3], [4]], "e": [[2, 3], [4, 5]]}},
    "sharded": {
        "text": MLP,
        "where": {"": [0, 1], "b": [0, 1, 2], "c": [3, 4, 5], "d": [0, 1, 2, 3, 4], "e": [5]},
        "sharded": ("a", "b", "c", "d", "c.I", "d.I", "y.I"),
    },
    "tied": {
        "text": TIED,
        "where": {"": [0, 1], "p": [2], "encoder": [2], "cross": [3, 4, 5], "logits": [2], "loss": [2]},
    },
    "mixed": {"text": MIXED, "where": {"": [0], "q": [0, 1], "a": [1, 2, 3], "m": [0, 1, 2], "z": [4, 5], "k": [4, 5]}},
    "images": {"text": IMAGES, "where": {"": [0], "a": [0, 1, 2], "e": [1, 2], "f": [3, 4], "i": [3, 4]}},
    "one accelerator": {"text": TIED, "where": {"": [4]}, "microbatches": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_gradients_are_those_of_the_unpipelined_model(name: str, placed: Placed, threads: Any, tmp_path: Path) -> None:
    job, programs = placed(**RUNS[name], optimizer="sgd")
    board = threads(job)
    found = board.run(tmp_path, programs)
    assert found.gradients is not None
    assert found.agrees, found
    # Models with a bend are computed in 64 bits.
    assert found.gradients.error < (1e-12 if name == "images" else 2e-6)
    trained = {o.group for o in job.operators if o.kind == "weight_gradient"}
    assert found.gradients.compared >= len(trained)
    assert found.parameters is None
    # Nothing is left but the outputs of the graph.
    assert sum(board.left.values()) == sum(
        len(job.operators[v].on(i)) for v, _ in job.outputs for i in range(job.microbatches)
    )


@pytest.mark.parametrize(("name", "policy"), [("tied", "selective"), ("tied", "full"), ("mixed", "selective")])
def test_gradients_of_what_is_recomputed(name: str, policy: str, placed: Placed, threads: Any, tmp_path: Path) -> None:
    job, programs = placed(**RUNS[name], optimizer="sgd", recompute=policy)
    assert any(o.kind == "recompute" for o in job.operators)
    found = threads(job).run(tmp_path, programs)
    assert found.agrees, found
    assert found.gradients.compared == (39 if name == "tied" else 9)


def test_every_parameter_is_compared(placed: Placed, threads: Any, tmp_path: Path) -> None:
    job, programs = placed(**RUNS["unequal"], optimizer="sgd")
    found = threads(job).run(tmp_path, programs)
    # Weight and bias of a and c, both vectors of d in one, the weight of e.
    assert found.gradients.compared == 6
    kinds = {kind for rows in placed(**RUNS["sharded"], optimizer="sgd")[1].values() for kind in rows[:, 0].tolist()}
    assert {COPY, ALL_GATHER} <= kinds


# --- steps of the optimizer ------------------------------------------------------------------


def stepping(job: Job, microbatches: int) -> Job:
    """``job`` with a step of the optimizer after every so many micro-batches."""
    return replace(job, step=True, per_pattern=microbatches)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_parameters_after_steps_are_those_of_torch(
    optimizer: str, placed: Placed, threads: Any, tmp_path: Path
) -> None:
    from compiler.runtime.reference import compare

    job, programs = placed(**RUNS["unequal"] | {"windows": 1, "microbatches": 6}, optimizer=optimizer)
    found = threads(stepping(job, 2)).run(tmp_path, programs)
    assert found.agrees, found
    assert found.parameters is not None
    assert found.parameters.compared == 6
    assert found.parameters.error < 1e-6
    # Without the steps the last outputs are others.
    still = threads(replace(stepping(job, 2), updates=())).run(tmp_path, programs)
    assert still.agrees
    assert still.parameters is None
    assert compare(tmp_path, stepping(job, 2)).error > 1e-3


COPIES = """model copies {
  input ids: tensor<2 x 3, i32>
  input labels: tensor<2 x 3, i32>
  x = embedding(ids, vocab = 6, dim = 4) group "table"
  h = linear(x, features = 4, bias = true)
  y = linear(h, features = 6, split = "SPLIT", bias = true) group "table"
  loss = cross_entropy(y, labels)
  output loss
}"""


@pytest.mark.parametrize("split", ["column", "row"])
@pytest.mark.parametrize("there", [[1, 2], [0, 1], [0]])
def test_copies_of_parameters_stay_equal(
    split: str, there: Sequence[int], placed: Placed, threads: Any, tmp_path: Path
) -> None:
    """A table on one accelerator, and a copy of it that others share by rows or by columns."""
    from compiler.runtime.reference import compare

    text = COPIES.replace("SPLIT", split)
    job, programs = placed(text, {"": [0], "y": there}, microbatches=4, windows=1, optimizer="adam")
    job = stepping(job, 2)
    assert {u.among for u in job.updates if job.ties[u.group] == "x"} == {tuple(sorted({0, *there}))}
    found = threads(job).run(tmp_path, programs)
    assert found.agrees, found
    # The table, both biases, and the weight of h.
    assert found.parameters.compared == found.gradients.compared == 4
    # Not summed, copies come apart.
    alone = replace(job, operators=tuple(replace(o, tied=None) for o in job.operators))
    alone = replace(alone, updates=tuple(replace(u, among=u.on) for u in job.updates))
    threads(alone).run(tmp_path, programs)
    assert compare(tmp_path, alone).agrees
    assert not compare(tmp_path, job).agrees


def test_ways_to_share_one_parameter_are_added_up(placed: Placed, threads: Any, tmp_path: Path) -> None:
    """The table is read by rows and by columns on the same accelerators: they hold both, and both are changed."""
    text = COPIES.replace("SPLIT", "row")
    job, programs = placed(text, {"": [0, 1], "h": [2]}, windows=1, optimizer="momentum", tie="colocate")
    found = threads(stepping(job, 2)).run(tmp_path, programs)
    assert found.agrees, found
    assert found.parameters.compared == found.gradients.compared == 4


TIES = """model ties {
  input one: tensor<2 x 3, i32>
  input two: tensor<2 x 3, i32>
  x = embedding(one, vocab = 6, dim = 4) group "left"
  y = embedding(two, vocab = 6, dim = 4) group "right"
  h = add(x, y)
  p = linear(h, features = 6) group "left"
  q = linear(h, features = 6) group "right"
  loss = cross_entropy(p, one)
  more = cross_entropy(q, two)
  total = add(loss, more)
  output total
}"""


def test_steps_of_ties_in_any_order(placed: Placed, threads: Any, tmp_path: Path) -> None:
    """Accelerators 0 and 1 hold copies of two tables, and change them in other orders."""

    class Turned(threads):
        def update(self, backend: Any, accelerator: int) -> None:
            numbers = [n for n, update in enumerate(self.job.updates) if accelerator in update.on]
            for number in reversed(numbers) if accelerator else numbers:
                backend.update(number)

    job, programs = placed(TIES, {"": [0], "p": [1], "q": [1]}, windows=1, optimizer="adam")
    job = stepping(job, 2)
    assert len(job.tied) == 2
    assert set(job.tied.values()) == {(0, 1)}
    found = Turned(job).run(tmp_path, programs)
    assert found.agrees, found
    assert found.parameters.compared == 2


# --- what goes wrong shows -------------------------------------------------------------------


@pytest.mark.parametrize("role", ["table", "bias", "norm"])
def test_a_gradient_that_is_scaled_shows(
    role: str, placed: Placed, threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compiler.runtime import real

    genuine = real.run_weight

    def scaled(call: Any) -> Any:
        group = {"table": "e", "bias": "c", "norm": "d"}[role]
        found = genuine(call)
        factor = 1.0001 if call.operator.group == group else 1.0
        return {name: x * factor if name[0].role == role else x for name, x in found.items()}

    monkeypatch.setattr(real, "run_weight", scaled)
    job, programs = placed(**RUNS["unequal"], optimizer="sgd")
    found = threads(job).run(tmp_path, programs)
    assert found.error < 1e-6
    assert not found.agrees
    assert 1e-5 < found.gradients.error < 1.1e-4
    assert found.gradients.worst.startswith(f"{role} of")


def test_a_part_that_is_left_out_shows(
    placed: Placed, threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compiler.runtime import real

    genuine = real.run_weight
    monkeypatch.setattr(
        real, "run_weight", lambda call: {} if call.operator.group == "c" and call.part == 1 else genuine(call)
    )
    job, programs = placed(**RUNS["unequal"], optimizer="sgd")
    found = threads(job).run(tmp_path, programs)
    assert not found.agrees
    assert found.gradients.error == float("inf")
    assert found.gradients.worst.endswith("of 'c'")
    monkeypatch.setattr(real, "run_weight", lambda call: {} if call.operator.group == "e" else genuine(call))
    found = threads(job).run(tmp_path, programs)
    assert not found.agrees
    assert found.gradients.missing == ("table of 'e'",)


def test_gradients_of_every_micro_batch_count(
    placed: Placed, threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compiler.runtime.torch_training import Trained

    genuine = Trained.add

    def first_only(self: Trained, found: Any, members: Any, group: str) -> None:
        if found.keys().isdisjoint(name[:2] for name in self.gradients):
            genuine(self, found, members, group)

    monkeypatch.setattr(Trained, "add", first_only)
    job, programs = placed(**RUNS["chain"], optimizer="sgd")
    assert threads(job).run(tmp_path, programs).gradients.error > 0.1


# --- what is refused -------------------------------------------------------------------------


def refused(text: str) -> str:
    from compiler.pipeline import new_context
    from compiler.runtime.trainable import check_trainable
    from dialects.diagnostics import TaktError
    from frontend import Source, load
    from passes.expand_training import ExpandTrainingPass

    module = load(Source("model.takt", text))
    ExpandTrainingPass().apply(new_context(), module)
    try:
        check_trainable(module)
    except TaktError as error:
        return str(error)
    return ""


LOSSES = """model losses {
  input x: tensor<4 x 4, f32>
  input t: tensor<4 x 4, f32>
  a = linear(x, features = 4)
  one = mse_loss(a, t)
  two = mse_loss(a, x)
  total = BOTH
  output OUTPUTS
}"""


@pytest.mark.parametrize(
    ("both", "outputs", "loss"),
    [
        ("add(one, two)", "total", ""),
        ("add(one, two)", "total, one", "one"),
        ("add(one, one)", "total", "one"),
        ("mul(one, two)", "total", ""),
        ("mul(one, two)", "total, two", "two"),
        ("mul(one, two)", "one, two", ""),
    ],
)
def test_losses_that_count_twice(both: str, outputs: str, loss: str) -> None:
    found = refused(LOSSES.replace("BOTH", both).replace("OUTPUTS", outputs))
    assert found == "" if not loss else f"loss '{loss}' counts more than once" in found


@pytest.mark.parametrize(("optimizer", "numbers"), [("none", 2), ("sgd", 2), ("momentum", 3), ("adam", 4)])
def test_what_lies_beside_parameters_counts(optimizer: str, numbers: int, placed: Placed) -> None:
    from compiler.runtime.fits import parameter_bytes
    from passes.training.held import Held

    job, _ = placed(**RUNS["chain"], optimizer=optimizer)
    held = Held(optimizer, mixed=True)
    operators = tuple(replace(o, params=held.bytes(o.params, 2)) for o in job.operators)
    # In float32: a with its bias, and the two vectors of d; c with its bias; e.
    assert parameter_bytes(replace(job, operators=operators)) == {
        0: numbers * 4 * (6 * 7 + 2 * 6),
        1: numbers * 4 * 8 * 6,
        2: numbers * 4 * 6 * 5,
    }
