"""``--emit torchtitan``: the modules of every pipeline stage, for the configuration of pytorch/torchtitan.

``module_fqns_per_model_part`` of torchtitan/config/configs.py lists the modules of every stage; those of its llama3 and
its other decoders are ``tok_embeddings``, ``layers.N``, ``norm`` and ``lm_head``. Stage ``v * pp + r`` is on rank ``r``
(``_get_pp_rank_to_stage_indices_mapping``). Up to release 0.2.2 the configuration was TOML and the head ``output``.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Literal

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.layers import LayerPlan, layers_of

WIDTH = 100


def emit(module: ModuleOp, *, form: Literal["python", "toml"] = "python") -> str:
    """The configuration as Python, as the present main branch takes it, or as TOML for releases up to 0.2.2.

    Raises :class:`TaktError` as :func:`layers_of` does.
    """
    plan = layers_of(module, "torchtitan")
    title = f"# {plan.title}\n"
    settings = {
        "tensor_parallel_degree": str(plan.width),
        "pipeline_parallel_degree": str(plan.ranks),
        "pipeline_parallel_schedule": '"1F1B"' if plan.chunks == 1 else '"Interleaved1F1B"',
    }
    if form == "toml":
        settings["module_fqns_per_model_part"] = _lists(modules(plan, "output"), "")
        return title + "[parallelism]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    settings["module_fqns_per_model_part"] = _lists(modules(plan, "lm_head"), "    ")
    lines = "".join(f"    {name}={value},\n" for name, value in settings.items())
    return f"{title}ParallelismConfig(\n{lines})\n"


def modules(plan: LayerPlan, head: str) -> list[list[str]]:
    """The modules of every stage; ``head`` is the name of the output layer."""
    found = [[f"layers.{i}" for i in layers] for layers in plan.layers]
    found[0].insert(0, "tok_embeddings")
    found[-1] += ["norm", head]
    return found


def _lists(stages: Sequence[Sequence[str]], indent: str) -> str:
    """Lists of a list, each on lines of its own; this is both Python and TOML."""
    inner = indent + "    "
    texts = ("[" + ", ".join(f'"{name}"' for name in stage) + "]," for stage in stages)
    lines = (fill(text, WIDTH, initial_indent=inner, subsequent_indent=inner + " ") for text in texts)
    return "[\n" + "".join(f"{line}\n" for line in lines) + indent + "]"
