"""``--emit vllm-partition``: the layers of every pipeline rank, for the environment of vLLM.

``VLLM_PP_LAYER_PARTITION`` has a number a rank, their sum is the number of layers. Rank 0 has the embedding and the
last rank the head. Source: ``get_pp_indices`` of vllm-project/vllm, vllm/distributed/utils.py.
"""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.layers import layers_of
from compiler.targets.pipelines import check_forward
from dialects.structure import find_graph


def emit(module: ModuleOp) -> str:
    """A line for the environment, behind comments; raises :class:`TaktError` as :func:`layers_of` does.

    A rank without layers is refused, since vLLM sets up a key-value cache on each (vllm-project/vllm issue 54711).
    """
    graph = find_graph(module)
    assert graph is not None
    check_forward(graph, "vLLM does not train")
    plan = layers_of(module, "vllm-partition", chunked=False, empty=False)
    counts = ",".join(str(len(layers)) for layers in plan.layers)
    return (
        f"# {plan.title}\n"
        f"# vllm serve MODEL --tensor-parallel-size {plan.width} --pipeline-parallel-size {plan.ranks}\n"
        f"VLLM_PP_LAYER_PARTITION={counts}\n"
    )
