"""A training step of Megatron-LM on A100, predicted from the cost tables of takt and the order of its schedule.

What is not in the tables is stated here, from what the software does: V. Korthikanti, J. Casper, S. Lym, L. McAfee,
M. Andersch, M. Shoeybi, B. Catanzaro, "Reducing Activation Recomputation in Large Transformer Models", MLSys 2023
(arXiv 2205.05198), and D. Narayanan et al., SC 2021, for the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from xdsl.context import Context
from xdsl.ir import SSAValue

from dialects.gradients import GradientOp, InputGradientOp, WeightGradientOp
from dialects.operators import OperatorOp, operator_names
from dialects.structure import find_graph, find_platform
from frontend import Source, load
from passes.costs.collectives import Collective, collective_ns
from passes.costs.layout import Placed, place
from passes.costs.machine import Machine
from passes.costs.reading import Reader, read_machine
from passes.costs.table import Row, cost_row
from passes.expand_training import ExpandTrainingPass
from passes.scheduling.steps.cells import Line, Run, Stage
from passes.scheduling.steps.known import KNOWN
from passes.scheduling.steps.run import run
from passes.training.regions import kept_values

MODELS = Path(__file__).resolve().parent.parent / "models"
TENSOR = 8
"""Accelerators of a stage."""

CORE = ("scores", "probabilities", "dropped_probabilities", "context", "context_rows")
"""What selective recomputation repeats (section 5): all of attention between its products with weights."""

UPDATED = 50
"""Bytes that the optimizer moves for a parameter: gradients of 32 bits are unscaled in place (8) and their norm taken
(4); Adam reads four numbers of 32 bits and writes three (28); the parameter is copied to 16 bits (6), the gradient set
to zero (4)."""

HELD = 18
"""Bytes held for a parameter: itself in 16 bits; gradient, master copy, mean and variance in 32."""


@dataclass(frozen=True)
class Case:
    """A model and how it was trained; ``interleaved`` stages on a rank."""

    name: str
    dim: int
    heads: int
    layers: int
    ranks: int
    interleaved: int
    microbatch: int
    batch: int

    @property
    def microbatches(self) -> int:
        return self.batch // self.microbatch

    @property
    def stages(self) -> int:
        return self.ranks * self.interleaved


CASES = (
    Case("22B", 6144, 64, 48, 1, 1, 4, 4),
    Case("175B", 12288, 96, 96, 8, 3, 1, 64),
    Case("530B", 20480, 128, 105, 35, 3, 1, 280),
    Case("1T", 25600, 160, 128, 64, 1, 1, 512),
)
"""Table 3 of Korthikanti et al."""


@dataclass(frozen=True)
class Priced:
    """An operator: what it is of, in which block, what it costs on each of :data:`TENSOR` accelerators."""

    op: OperatorOp
    name: str
    placed: Placed
    row: Row

    @property
    def part(self) -> str:
        return "model" if self.op.block is None else self.op.block.block.data


class Model:
    """The operators of a case with three layers, priced; ``sequence``: with sequence parallelism."""

    def __init__(self, case: Case, sequence: bool):
        self.case, self.sequence = case, sequence
        sets = {"layers": 3, "dim": case.dim, "heads": case.heads, "batch": case.microbatch}
        module = load(
            Source.read(MODELS / "megatron_gpt.takt"),
            platform=Source.read(MODELS / "dgx_a100_training.takt"),
            overrides={name: str(value) for name, value in sets.items()},
        )
        ExpandTrainingPass().apply(Context(), module)
        graph, platform = find_graph(module), find_platform(module)
        assert graph is not None
        assert platform is not None
        self.machine: Machine = read_machine(platform)
        names = operator_names(graph)
        placed = place(Reader(sequence).nodes(graph), list(graph.outputs.operands))
        self.operators: list[Priced] = []
        self.leaving: dict[SSAValue, int] = {}
        for op, found in zip(graph.operators(), placed, strict=True):
            for result, tensor, layout in zip(op.outputs, found.call.results, found.leaving, strict=True):
                self.leaving[result] = tensor.part(layout, TENSOR)
            if op.block is not None and op.block.block.data == "layer" and op.block.index.data != 1:
                continue  # the second of three stands for all
            name = names[op].split(".", 2)[-1].removeprefix("lm_head.")
            if "_view" not in name:  # strides, no kernels
                row = cost_row(self.machine, found, TENSOR)
                assert row is not None
                self.operators.append(Priced(op, name, found, row))
        self.kept = kept_values(graph)

    # --- times, ns ---------------------------------------------------------------------------

    def forward(self, part: str) -> float:
        """Forward cell of a block."""
        return sum(p.row.kernel + p.row.communication for p in self._of(part) if not _backward(p))

    def core(self) -> float:
        """What selective recomputation repeats in a layer."""
        again = [p for p in self._of("layer") if p.name in CORE]
        assert len(again) == len(CORE)
        return sum(p.row.kernel + p.row.communication for p in again)

    def backward(self, part: str) -> float:
        """Backward cell of a block without what is repeated: I and W of an operator one after the other.

        Of a product split by columns communication runs beside the other product: what is sent of the gradients of
        inputs beside the product for weights, rows gathered for that beside the product for inputs (section 4.2.2 and
        the end of 6.2). Rows gathered of a gradient serve both products.
        """
        weights = {_of(p): p for p in self._of(part) if isinstance(p.op, WeightGradientOp)}
        total = 0.0
        for p in self._of(part):
            if not _backward(p):
                continue
            if isinstance(p.op, WeightGradientOp):
                if not (_linear(p) and any(_of(q) == _of(p) and _is_input(q) for q in self._of(part))):
                    total += p.row.kernel + p.row.communication
            elif _linear(p) and _of(p) in weights:
                w = weights[_of(p)]
                if _columns(p):
                    total += max(p.row.kernel, w.row.communication) + max(w.row.kernel, p.row.communication)
                else:
                    total += p.row.kernel + w.row.kernel + p.row.communication
            else:
                total += p.row.kernel + p.row.communication
        return total

    def _of(self, part: str) -> list[Priced]:
        return [p for p in self.operators if p.part == part]

    @cached_property
    def hop(self) -> float:
        """Sending a value between layers to the next rank: an eighth from each accelerator, gathered there."""
        case = self.case
        size = case.microbatch * 2048 * case.dim * 2
        link = self.machine.links[1]
        sent = link.latency + 1e9 * size / TENSOR / link.rate
        whole = 0.0 if self.sequence else collective_ns(self.machine, Collective("all_gather", size, TENSOR))
        return sent + whole

    # --- bytes -------------------------------------------------------------------------------

    def params(self, part: str) -> int:
        """Bytes of 16-bit parameters of a block on each accelerator."""
        return sum(p.row.params for p in self._of(part) if not _backward(p))

    def activations(self, policy: str) -> int:
        """Bytes kept of a layer and micro-batch on each accelerator: with ``full`` the input, with ``none`` all."""
        if policy == "full":
            return sum(self.leaving[v] for v in self.kept if _place(v) == ("layer", 0) and _name(v) == "y")
        left_out = CORE if policy == "selective" else ()
        mine = (v for v in self.kept if _place(v) == ("layer", 1) and _name(v) not in left_out[:3])
        return sum(self.leaving[v] for v in mine)


def _backward(p: Priced) -> bool:
    return isinstance(p.op, GradientOp) or ".sum" in p.name


def _is_input(p: Priced) -> bool:
    return isinstance(p.op, InputGradientOp)


def _linear(p: Priced) -> bool:
    return isinstance(p.op, GradientOp) and p.op.of.kind.data == "linear"


def _columns(p: Priced) -> bool:
    return cast(GradientOp, p.op).of.values_of_arguments()["split"] == "column"


def _of(p: Priced) -> str:
    return p.name.rpartition(".")[0]


def _place(value: SSAValue) -> tuple[str, int]:
    """Name and number of the block that makes ``value``."""
    block = value.owner.block if isinstance(value.owner, OperatorOp) else None
    return ("", 0) if block is None else (block.block.data, block.index.data)


def _name(value: SSAValue) -> str:
    return (value.name_hint or "").rpartition(".")[2]


@dataclass(frozen=True)
class Prediction:
    """Times in ns: of the pipeline, of adding up gradients of embeddings, of the optimizer; and of one layer."""

    pipeline: int
    tied: float
    optimizer: float
    forward: float
    backward: float
    again: float
    taken: Run

    @property
    def seconds(self) -> float:
        return (self.pipeline + self.tied + self.optimizer) / 1e9


def predict(case: Case, policy: str) -> Prediction:
    """A step with ``full`` recomputation of every layer, or ``selective`` with sequence parallelism."""
    model = Model(case, policy == "selective")
    layers = case.layers // case.stages
    forward, backward = model.forward("layer"), model.backward("layer")
    again = forward if policy == "full" else model.core()
    kept = layers * model.activations(policy)
    stages: list[Stage] = []
    for s in range(case.stages):
        first, last = s == 0, s == case.stages - 1
        f, b = layers * forward, layers * (backward + again)
        if first:
            f, b = f + model.forward("token_position_embedding"), b + model.backward("token_position_embedding")
        if last:
            f, b = f + model.forward("lm_loss"), b + model.backward("lm_loss")
        # Sending holds up the sender, and the receiver as long.
        f += 0 if last else model.hop
        b += 0 if first else model.hop
        stages.append(Stage(s % case.ranks, round(f), round(b), 0, kept))
    line = Line(tuple(stages))
    name = "interleaved 1F1B" if case.interleaved > 1 else "1F1B"
    taken = run(line, KNOWN[name].generate(line, case.microbatches))
    embedding = model.params("token_position_embedding")
    mine = case.layers // case.ranks * model.params("layer") + embedding
    optimizer = model.machine.memory_ns(mine // 2 * UPDATED)
    # The table of embeddings lies on the first and the last rank; its gradients, in 32 bits, are added up.
    tied = (
        0.0 if case.ranks == 1 else model.machine.links[1].latency + 1e9 * 2 * embedding / model.machine.links[1].rate
    )
    return Prediction(taken.makespan, tied, optimizer, forward, backward, again, taken)
