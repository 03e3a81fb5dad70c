"""The emitters as targets of xDSL, with their options: what ``takt-opt -t`` and ``taktc --emit`` choose from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import IO, Literal

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.target import Target

from compiler.pass_text import parse_target
from compiler.targets import emitter


class TaktTarget(Target):
    """One of takt's emitters as a target of xDSL; its fields are the options of ``emit``."""

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        output.write(self.text(module))

    def text(self, module: ModuleOp, *, colour: bool = False) -> str:
        """What the emitter writes for a module; ``colour`` where it is for a person and knows colours."""
        return emitter(self.name)(module, **asdict(self))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class JsonTarget(TaktTarget):
    """The schedule as JSON."""

    name = "json"


@dataclass(frozen=True)
class PerfettoTarget(TaktTarget):
    """A trace of some periods for the Perfetto UI, with or without counters of memory."""

    name = "perfetto"

    periods: int = 3
    memory: bool = True


@dataclass(frozen=True)
class SvgTarget(TaktTarget):
    """A Gantt chart of the steady state, ``width`` pixels wide."""

    name = "svg"

    width: int = 1280


@dataclass(frozen=True)
class SummaryTarget(TaktTarget):
    """A table for people, ``width`` columns wide (else as wide as the terminal), with the time of a step."""

    name = "summary"

    width: int | None = None
    microbatches: int | None = None

    def text(self, module: ModuleOp, *, colour: bool = False) -> str:
        return emitter(self.name)(module, colour=colour, **asdict(self))


@dataclass(frozen=True)
class MpmdTarget(TaktTarget):
    """Shardy MPMD: a mesh for each set of accelerators, a fragment for each visit of a micro-batch, in our order.

    ``form`` "fragments" has regions, as the MPMD compiler takes them first; "calls" functions, as it lowers them last.
    """

    name = "mpmd"

    microbatches: int | None = None
    form: Literal["fragments", "calls"] = "fragments"


@dataclass(frozen=True)
class TorchCsvTarget(TaktTarget):
    """A schedule file for torch.distributed.pipelining: a line a rank, with or without its communication."""

    name = "torch-csv"

    microbatches: int | None = None
    form: Literal["compute-only", "compute-comms", "stages"] = "compute-only"


@dataclass(frozen=True)
class MegatronLayoutTarget(TaktTarget):
    """Arguments for Megatron-core: ``--pipeline-model-parallel-layout`` and the degrees that go with it."""

    name = "megatron-layout"


@dataclass(frozen=True)
class TorchtitanTarget(TaktTarget):
    """Modules of the pipeline stages of torchtitan, ``form`` "python" for its main branch or "toml" up to 0.2.2."""

    name = "torchtitan"

    form: Literal["python", "toml"] = "python"


@dataclass(frozen=True)
class VllmPartitionTarget(TaktTarget):
    """Layers of each pipeline rank, as vLLM's ``VLLM_PP_LAYER_PARTITION`` takes them."""

    name = "vllm-partition"


REGISTRY: tuple[type[TaktTarget], ...] = (
    JsonTarget,
    PerfettoTarget,
    SvgTarget,
    SummaryTarget,
    MpmdTarget,
    TorchCsvTarget,
    MegatronLayoutTarget,
    TorchtitanTarget,
    VllmPartitionTarget,
)


def make_target(text: str) -> TaktTarget:
    """The target that ``name`` or ``name{option=value}`` asks for; UsageError when there is none such."""
    found = parse_target(text, {target.name: lambda target=target: target for target in REGISTRY})
    assert isinstance(found, TaktTarget)
    return found


def for_batch(target: TaktTarget, microbatches: int | None) -> TaktTarget:
    """``target`` for so many micro-batches, where it knows of them and was not told."""
    known = {f.name for f in fields(target)}  # pyright: ignore[reportArgumentType]
    if microbatches is None or "microbatches" not in known or getattr(target, "microbatches") is not None:  # noqa: B009
        return target
    return replace(target, microbatches=microbatches)  # pyright: ignore
