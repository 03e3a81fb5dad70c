"""Real runs in one process: accelerators are threads, messages go through queues, collectives through barriers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compiler.runtime.job import Rows
from dialects.diagnostics import TaktError
from dialects.programs import ALL_GATHER, COMPUTE, COPY, FREE, RECV, SEND, Instruction

if TYPE_CHECKING:
    import torch


pytestmark = pytest.mark.torch


def kinds(programs: Mapping[int, Rows]) -> set[int]:
    return {kind for rows in programs.values() for kind in rows[:, 0].tolist()}


# --- models ----------------------------------------------------------------------------------

CHAIN = """model chain {
  input x: tensor<3 x 5, bf16>
  a = linear(x, features = 7, bias = true)
  b = gelu(a)
  c = linear(b, features = 6, split = "row", bias = true)
  d = layer_norm(c)
  e = linear(d, features = 5)
  output e
}"""

SKIP = """model skip {
  input x: tensor<2 x 6, f32>
  a = linear(x, features = 6)
  b = gelu(a)
  c = linear(b, features = 6)
  d = op(c) time [1us] output 11 B
  y = residual(a, c)
  z = op(y, d, a) time [1us] output 13 B
  output z, y
}"""

ENCODER_DECODER = """model both {
  input source: tensor<2 x 5, i32>
  input target: tensor<2 x 3, i32>
  input labels: tensor<2 x 3, i32>
  x = embedding(source, vocab = 17, dim = 12) group "table"
  enc = encoder(x, heads = 3)
  t = embedding(target, vocab = 17, dim = 12) group "table"
  dec = cross_decoder(t, enc, heads = 3)
  logits = linear(dec, features = 17) group "table"
  loss = cross_entropy(logits, labels)
  output loss, logits
}"""

STATES = """model states {
  input x: tensor<2 x 4, bf16>
  state total: tensor<2 x 4, bf16> distance 2
  state last: tensor<2 x 4, bf16>
  h = linear(x, features = 4)
  sum = add(h, total)
  norm = rms_norm(sum)
  mixed = residual(norm, last)
  y = linear(mixed, features = 4)
  next total = norm
  next last = y
  output y
}"""

RUNS: dict[str, dict[str, Any]] = {
    "chain": {"text": CHAIN, "where": {"": [0], "c": [1], "e": [2]}},
    "unequal": {"text": CHAIN, "where": {"": [0], "b": [1, 2], "c": [1, 2, 3], "d": [4, 5], "e": [0]}},
    "copies": {"text": CHAIN, "where": {"": [0, 1], "c": [[2], [3]], "d": [[3], [4]], "e": [[2, 3], [4, 5]]}},
    "sharded": {
        "text": CHAIN,
        "where": {"": [0, 1], "b": [0, 1, 2], "c": [3, 4, 5], "d": [0, 1, 2, 3, 4], "e": [5]},
        "sharded": ("a", "b", "c", "d"),
    },
    "skip": {"text": SKIP, "where": {"": [0], "c": [1, 2], "d": [3], "y": [3, 4, 5], "z": [1]}},
    "encoder-decoder": {
        "text": ENCODER_DECODER,
        "where": {"": [0, 1], "encoder": [2], "cross": [3, 4, 5], "loss": [2]},
    },
    "states": {"text": STATES, "where": {"": [0], "norm": [1, 2], "mixed": [0, 1], "y": [2]}, "windows": 1},
    "one accelerator": {"text": ENCODER_DECODER, "where": {"": [4]}, "microbatches": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_what_the_unpipelined_model_gives(placed: Any, threads: Any, name: str, tmp_path: Path) -> None:
    job, programs = placed(**RUNS[name])
    board = threads(job)
    found = board.run(tmp_path, programs)
    assert found.agrees, found
    assert found.error < 1e-6
    outputs = sum(len(job.operators[v].on(i)) for v, _ in job.outputs for i in range(job.microbatches))
    assert found.compared == outputs
    # Nothing is left but the outputs of the graph, where they were computed.
    assert sum(board.left.values()) == outputs


def test_the_runs_have_every_instruction_and_odd_shares(placed: Any, threads: Any, tmp_path: Path) -> None:
    seen = {name: kinds(placed(**given)[1]) for name, given in RUNS.items()}
    assert set().union(*seen.values()) == {COMPUTE, SEND, RECV, COPY, ALL_GATHER, FREE}
    assert ALL_GATHER in seen["unequal"]
    assert COPY in seen["sharded"]
    board = threads(placed(**RUNS["sharded"])[0])
    board.run(tmp_path, placed(**RUNS["sharded"])[1])
    # Half a number of bf16 is two bytes of a float32.
    assert any(size % 4 == 2 for size in board.sizes)


# --- what goes wrong shows -------------------------------------------------------------------


def test_a_lost_message_shows(placed: Any, threads: Any, tmp_path: Path) -> None:
    from compiler.runtime.real import LOST

    job, programs = placed(**RUNS["sharded"])
    lost: list[Instruction] = []

    def spoil(x: Instruction, room: torch.Tensor) -> None:
        if x.microbatch == 2 and x.subject == 2 and not lost:
            lost.append(x)
            room.fill_(LOST)

    found = threads(job, spoil).run(tmp_path, programs)
    assert lost
    assert not found.agrees
    assert found.worst is not None
    assert (found.error, found.worst.microbatch) == (float("inf"), 2)


@pytest.mark.parametrize("name", ["skip", "chain", "sharded"])
def test_a_message_of_another_micro_batch_shows(placed: Any, threads: Any, name: str, tmp_path: Path) -> None:
    """The second message of some way brings what the first has brought."""
    job, programs = placed(**RUNS[name])
    ways: dict[tuple[int, ...], list[tuple[int, torch.Tensor]]] = {}
    repeated: list[Instruction] = []

    def spoil(x: Instruction, room: torch.Tensor) -> None:
        before = ways.setdefault((x.subject, x.result, x.destination, *x[5:]), [])
        if before and not repeated and room.numel():
            repeated.append(x)
            room.copy_(before[-1][1])
        before.append((x.microbatch, room.clone()))

    found = threads(job, spoil).run(tmp_path, programs)
    assert repeated
    assert not found.agrees
    assert found.worst is not None
    assert found.worst.microbatch == repeated[0].microbatch


def test_outputs_that_are_not_there_are_named(placed: Any, threads: Any, tmp_path: Path) -> None:
    from compiler.runtime.job import outputs_file
    from compiler.runtime.reference import compare

    job, programs = placed(**RUNS["chain"])
    assert threads(job).run(tmp_path, programs).agrees
    outputs_file(tmp_path, job.rank_of[2]).unlink()
    found = compare(tmp_path, job)
    assert found.missing == tuple((0, i, 2) for i in range(4))
    assert not found.agrees


def test_another_seed_is_another_run(placed: Any, threads: Any, tmp_path: Path) -> None:
    from compiler.runtime.reference import compare

    job, programs = placed(**RUNS["chain"])
    threads(job).run(tmp_path, programs)
    assert compare(tmp_path, replace(job, settings=replace(job.settings, seed=4))).error > 0.1


def test_the_end_of_another_accelerator_is_no_fault_of_this_one(placed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from compiler.runtime.backend import Place
    from compiler.runtime.real import RealBackend

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("torch.distributed.all_reduce", fail)
    monkeypatch.setattr("torch.distributed.all_gather", fail)
    job, _ = placed(**RUNS["unequal"])
    backend = RealBackend(Place(job, 1, {(1, 2): None}))  # type: ignore[dict-item]
    with pytest.raises(ConnectionError, match="closed by peer"):
        backend.add(torch.zeros(2), (1, 2))
    with pytest.raises(ConnectionError, match="closed by peer"):
        backend.gather(torch.zeros(2), [2, 2], (1, 2))


def test_relative_errors() -> None:
    torch = pytest.importorskip("torch")
    from compiler.runtime.reference import relative_error

    expected = torch.tensor([3.0, 4.0])
    assert relative_error(expected.clone(), expected) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, float("nan")]), expected) == float("inf")
    assert relative_error(expected, torch.zeros(2)) == float("inf")
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(torch.tensor([float("inf")]), torch.tensor([float("inf")])) == float("inf")


# --- what is made from seeds -----------------------------------------------------------------


def test_inputs_are_within_the_tables_of_their_readers(placed: Any) -> None:
    torch = pytest.importorskip("torch")
    from compiler.runtime.torch_values import input_value

    job, _ = placed(**RUNS["encoder-decoder"])
    for number, shape in enumerate([(2, 5), (2, 3), (2, 3)]):
        drawn = torch.stack([input_value(job, number, i) for i in range(20)])
        assert drawn.shape[1:] == shape
        assert drawn.equal(drawn.round())
        assert drawn.min() >= 0
        assert 10 < drawn.max() < 17
        assert not drawn[0].equal(drawn[1])
        assert drawn[7].equal(input_value(job, number, 7))


def test_operators_of_a_group_share_one_tensor(placed: Any) -> None:
    torch = pytest.importorskip("torch")
    from compiler.runtime.torch_values import Parameters

    job, _ = placed(**RUNS["encoder-decoder"])
    parameters = Parameters(0)
    tied = [o for o in job.operators if o.group == "table"]
    assert [o.kind for o in tied] == ["embedding", "embedding", "linear"]
    tables = [parameters.get(o, "table", (17, 12)) for o in tied]
    assert tables[0] is tables[1] is tables[2]
    other = next(o for o in job.operators if o.kind == "linear" and o.group is None)
    assert not parameters.get(other, "table", (17, 12)).equal(tables[0])
    assert parameters.get(tied[0], "table", (17, 12), torch.float32, 0, slice(5, 9)).equal(tables[0][5:9])
    assert not Parameters(1).get(tied[0], "table", (17, 12)).equal(tables[0])


def test_a_run_that_does_not_fit_is_refused(placed: Any) -> None:
    from compiler.runtime.fits import check_fits, parameter_bytes, peak_bytes

    job, programs = placed(**RUNS["chain"])
    # In float32: a with its bias, and the two vectors of d; c with its bias; e.
    assert parameter_bytes(job) == {0: 4 * (6 * 7 + 2 * 6), 1: 4 * 8 * 6, 2: 4 * 6 * 5}
    assert peak_bytes(job, programs[2]) == 4 * (3 * 6 + 4 * 3 * 5)
    check_fits(job, programs)
    with pytest.raises(TaktError, match=r"would hold .* of values in its 3 processes, more than 1.00 KiB") as caught:
        check_fits(job, programs, 1024)
    assert "--set layers=2" in str(caught.value.diagnostics[0].hint)
