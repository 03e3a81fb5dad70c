"""Schedules whose backward is one piece: GPipe, 1F1B, interleaved 1F1B, 1F1B*. ``ranks`` is p, ``microbatches`` m."""

from __future__ import annotations

from passes.scheduling.steps.cells import Cell, Line, Orders
from passes.scheduling.steps.phases import spelled


def gpipe(ranks: int, microbatches: int) -> Orders:
    """All forwards, then all backwards (Huang et al., "GPipe", NeurIPS 2019, section 2.3).

    Backwards run in the order of forwards, as runtimes do. Equal stages: bubble (p-1)/(m+p-1), m activations held.
    """
    return [spelled([rank], microbatches, [(microbatches, "F0"), (microbatches, "B0")]) for rank in range(ranks)]


def one_forward_one_backward(ranks: int, microbatches: int) -> Orders:
    """A forward, a backward, in turn, after p-1-s forwards on stage s.

    PipeDream-Flush (Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training", ICML 2021, section 3.2; Fan et
    al., "DAPPLE", PPoPP 2021). Equal stages: bubble (p-1)/(m+p-1), min(m, p-s) activations held.
    """
    return _with_at_most([ranks - stage for stage in range(ranks)], microbatches)


def interleaved(ranks: int, microbatches: int, chunks: int) -> Orders:
    """1F1B with v ``chunks`` on a rank; stage s is on rank s mod p, and p micro-batches in a row do one chunk.

    Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM", SC 2021,
    section 2.2.2, figure 4. There m is a multiple of p; for others the orders are those of the next multiple without
    the micro-batches that are too many. With one chunk it is 1F1B. Equal stages: bubble (p-1)/(vm+p-1) for multiples,
    and vp+p-1 activations of a chunk held on rank 0 (Korthikanti et al., "Reducing Activation Recomputation in Large
    Transformer Models", MLSys 2023, section 4.2.3: p(1+(p-1)/(pv)) of a whole rank's).
    """
    if chunks == 1:
        return one_forward_one_backward(ranks, microbatches)
    rows = -(-microbatches // ranks)
    turns = [(row * ranks + i, chunk) for row in range(rows) for chunk in range(chunks) for i in range(ranks)]
    orders: list[list[Cell]] = []
    for rank in range(ranks):
        ahead = min((chunks - 1) * ranks + 2 * (ranks - 1 - rank), len(turns))
        forwards = [Cell("F", chunk * ranks + rank, i) for i, chunk in turns]
        backwards = [Cell("B", (chunks - 1 - chunk) * ranks + rank, i) for i, chunk in turns]
        steady = [cell for pair in zip(forwards[ahead:], backwards, strict=False) for cell in pair]
        cells = forwards[:ahead] + steady + backwards[len(turns) - ahead :]
        orders.append([cell for cell in cells if cell.microbatch < microbatches])
    return orders


def one_forward_one_backward_star(line: Line, microbatches: int, period: int | None = None) -> Orders:
    """1F1B*: the fewest activations on every stage that a period allows; without one, the least possible period.

    Beaumont, Eyraud-Dubois, Shilova, "Pipelined Model Parallelism: Complexity Results and Memory Considerations",
    Euro-Par 2021: from the last stage backwards, stages are put into groups as large as fit into the period, and a
    stage of the g-th group holds g activations. Why none holds fewer: if stage s holds h(s), a forward of it leads to
    one of stage t behind, the backward that t does next to one of s, and that to the forward of s h(s) - h(t) + 1
    micro-batches after the first. So the work of stages s to t, with the delays of both ways, fits into as many
    periods. The least numbers for which it does are those of the groups where there are no delays. Delays are on top
    here; the paper has links that transfer one thing at a time instead.

    Raises ``ValueError`` for a period that a rank's own work exceeds.
    """
    works = [stage.work for stage in line.stages]
    period = max(1, *works) if period is None else period
    if max(works) > period:
        raise ValueError(f"a rank works for {max(works)} ns in every period of {period} ns")
    held = [1] * len(works)
    for first in reversed(range(len(works))):
        load = works[first]
        for last in range(first + 1, len(works)):
            load += works[last] + 2 * line.lag(last - 1, last)
            held[first] = max(held[first], held[last] - 1 + -(-load // period))
    return _with_at_most(held, microbatches)


def _with_at_most(held: list[int], microbatches: int) -> Orders:
    """A forward, a backward, in turn, after as many forwards as a stage holds activations of, but for one."""
    many = max(microbatches, *held)
    return [
        spelled([stage], microbatches, [(most - 1, "F0"), (many - most + 1, "F0 B0"), (most - 1, "B0")])
        for stage, most in enumerate(held)
    ]
