"""Schedules that split backwards and fill bubbles with gradients of weights. ``ranks`` is p, ``microbatches`` m.

ZB-H1, ZB-H2 and ZB-V are of Qi, Wan, Huang, Lin, "Zero Bubble Pipeline Parallelism" (ICLR 2024 and arXiv 2401.10241);
its B is our ``I``. Batches smaller than the warm-up of a schedule get the orders of the smallest that is not, without
the micro-batches that are too many.
"""

from __future__ import annotations

from passes.scheduling.steps.cells import Cell, Orders
from passes.scheduling.steps.phases import spelled


def zb_h1(ranks: int, microbatches: int) -> Orders:
    """Section 2.1, figure 3 (top): ``I`` and ``F`` of 1F1B, and ``W`` late enough that all ranks hold the same.

    Table 2: idle (p-1)(F+I-W) of the makespan if W <= F and W <= I, p activations held; section 2.3: on rank s (from 0)
    p-s of them, and s of what ``I`` leaves for ``W``.
    """
    return _by_hand(ranks, microbatches, 1)


def zb_h2(ranks: int, microbatches: int) -> Orders:
    """Section 2.2, figure 3 (bottom): twice the forwards before the first backward, and ``W`` later still.

    Table 2: idle (p-1)(F+I-2W) of the span if W <= F and W <= I, 2p-1 activations held; section 2.3: on rank s (from 0)
    2(p-s)-1 of them, and 2s of what ``I`` leaves for ``W``.
    """
    return _by_hand(ranks, microbatches, 2)


def _by_hand(ranks: int, microbatches: int, more: int) -> Orders:
    """``more`` forwards ahead a rank behind, and as many gradients of weights back a rank before."""
    many = max(microbatches, more * (ranks - 1))
    orders: list[list[Cell]] = []
    for rank in range(ranks):
        ahead, late = more * (ranks - 1 - rank), more * rank
        both = many - ahead - late
        phases = [(ahead, "F0"), (late, "F0 I0"), (both, "F0 I0 W0"), (ahead, "I0 W0"), (late, "W0")]
        orders.append(spelled([rank], microbatches, phases))
    return orders


def zb_v(ranks: int, microbatches: int) -> Orders:
    """Section 6: two chunks on a rank, stages s and 2p-1-s on rank s, so that a micro-batch goes there and back.

    The order for F = I = W, in which no rank idles between its first cell and its last, and 2p activations of a chunk
    (p of a rank) are held. For unequal times the authors search for orders; here the order stays.
    """
    many = max(microbatches, 2 * ranks - 1)
    orders: list[list[Cell]] = []
    for rank in range(ranks):
        behind = ranks - rank
        phases = [
            (2 * behind - 1, "F0"),
            (rank, "F1 F0"),
            (behind, "F1 I1 W1"),
            (many - 2 * ranks + 1 + rank, "F0 I0 W0 F1 I1 W1"),
            (behind - 1, "I0 W0 F1 I1 W1"),
            (rank, "I0 I1"),
            (behind, "I0 W0"),
            (rank, "W1"),
            (rank, "W0"),
        ]
        orders.append(spelled([rank, 2 * ranks - 1 - rank], microbatches, phases))
    return orders


def dualpipe_v(ranks: int, microbatches: int) -> Orders:
    """DualPipe cut in half: two chunks on a rank as in ZB-V, forwards of one beside backwards of the other.

    DeepSeek-AI, "DeepSeek-V3 Technical Report", section 3.2.1, and github.com/deepseek-ai/DualPipe (``dualpipev.py``,
    steps 1 to 8; for at least 2p micro-batches). There a forward and a backward of two micro-batches are one cell,
    which takes less than both because each communicates while the other computes. Here they are two cells, the forward
    first, that take as long as both, and each sends on when it ends. The table beside that code has 2p+1 activations of
    a chunk held and, of a makespan, (p-1)(F&B + B - 3W) idle, where both send when both have ended; for F = I = W,
    sending at once makes that (p-1)(F+I-W).
    """
    many = max(microbatches, 2 * ranks)
    orders: list[list[Cell]] = []
    for rank in range(ranks):
        behind = ranks - 1 - rank
        phases = [
            (2 * behind, "F0"),
            (rank + 1, "F0 F1"),
            (behind, "I1 W F1"),
            (many - 2 * ranks + rank + 1, "F0 B1 F1 B0"),
            (behind, "B1 F1 B0"),
            (1, _last_backwards(rank + 1)),
            (behind, "W I0"),
            (rank + 1, "W"),
        ]
        orders.append(spelled([rank, 2 * ranks - 1 - rank], microbatches, phases))
    return orders


def _last_backwards(pairs: int) -> str:
    """Backwards of both chunks in turn: the first half whole, the second without the gradients of weights."""
    return " ".join(f"{'B' if number < pairs else 'I'}{1 - number % 2}" for number in range(2 * pairs))
