"""``--emit megatron-layout``: arguments for Megatron-core, with the layers of every pipeline stage.

A layout lists stages between ``|``: ``E`` is the embedding, ``t`` a layer, ``L`` output layer and loss; ``t*3`` and
``(t*4|)*3`` repeat, commas are for the eye. Stage ``v * pp + r`` is virtual stage ``v`` of rank ``r``. Source:
``PipelineParallelLayerLayout`` of NVIDIA/Megatron-LM, megatron/core/transformer/pipeline_parallel_layer_layout.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.layers import layers_of

LEAST_RUN = 3
"""Shorter runs are written out."""


def emit(module: ModuleOp) -> str:
    """The arguments, one a line, behind a comment; raises :class:`TaktError` as :func:`layers_of` does."""
    plan = layers_of(module, "megatron-layout")
    lines = (
        f"# {plan.title}",
        f"--num-layers {plan.count}",
        f"--tensor-model-parallel-size {plan.width}",
        f"--pipeline-model-parallel-size {plan.ranks}",
        f"--pipeline-model-parallel-layout '{layout([len(found) for found in plan.layers])}'",
    )
    return "".join(f"{line}\n" for line in lines)


def layout(layers: Sequence[int]) -> str:
    """The layout of stages with so many layers: ``[3, 2, 2, 2, 0]`` gives ``Et*3|(tt|)*3,L``."""
    stages = ["t" * n if n < LEAST_RUN else f"t*{n}" for n in layers]
    stages[0] = "E" + stages[0]
    last = stages.pop() + "L"
    text = ""
    for stage, run in groupby(stages):
        times = len(list(run))
        text += f"({stage}|)*{times}," if times >= LEAST_RUN else f"{stage}|" * times
    return text + last
