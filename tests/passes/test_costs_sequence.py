"""annotate-costs with sequence parallelism: what is split, and what a layer sends."""

from __future__ import annotations

from collections import Counter
from typing import cast

from xdsl.context import Context

from dialects.levels import verify_level
from dialects.operators import OperatorOp, operator_names
from dialects.structure import GraphOp, find_graph
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.costs.layout import Placed, place
from passes.costs.reading import Reader
from passes.costs.table import collectives
from passes.expand_training import ExpandTrainingPass
from passes.recompute_activations import RecomputeActivationsPass

TEXT = """
import "takt/embedding.takt"
import "takt/head.takt"
import "takt/transformer.takt"
model gpt {
  input tokens: tensor<2 x 64, i32>
  input labels: tensor<2 x 64, i32>
  x = token_position_embedding(tokens, vocab = 256, dim = 128)
  repeat 3 carry x { x = gpt_decoder(x, heads = 4) }
  loss = lm_loss(x, labels, vocab = 256)
  output loss
}
accelerator a { memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }
platform p { accelerators = 4 of a  link node { latency = 1 us  bandwidth = 10 GB/s } }
"""
WHOLE = 2 * 64 * 128 * 2
"""Bytes of a value between two layers."""


def layer(sequence: bool, policy: str = "none") -> dict[str, tuple[OperatorOp, Placed]]:
    """The operators of the second of three layers, by their names in it."""
    module = load(Source("m.takt", TEXT))
    ExpandTrainingPass().apply(Context(), module)
    RecomputeActivationsPass(policy=policy).apply(Context(), module)  # pyright: ignore[reportArgumentType]
    graph = cast(GraphOp, find_graph(module))
    placed = place(Reader(sequence).nodes(graph), list(graph.outputs.operands))
    names = operator_names(graph)
    pairs = zip(graph.operators(), placed, strict=True)
    return {names[op].removeprefix("gpt_decoder.1."): (op, p) for op, p in pairs if "gpt_decoder.1." in names[op]}


def sent(operators: dict[str, tuple[OperatorOp, Placed]], *endings: str) -> Counter[tuple[str, int]]:
    found = (c for name, (_, p) in operators.items() if name.endswith(endings) for c in collectives(p, 4))
    return Counter((c.pattern, c.size) for c in found)


def test_a_layer_gathers_and_scatters_instead_of_adding_up() -> None:
    plain, split = layer(sequence=False), layer(sequence=True)
    forward = [name for name in plain if not name.endswith((".I", ".W")) and ".sum" not in name]
    assert sent(plain, *forward) == {("all_reduce", WHOLE): 2}
    # q, k, v and up gather rows, o and down scatter them; backwards the other way round.
    assert sent(split, *forward) == {("all_gather", WHOLE): 4, ("reduce_scatter", WHOLE): 2}
    assert sent(plain, ".I") == {("all_reduce", WHOLE): 4}
    assert sent(split, ".I") == {("all_gather", WHOLE): 2, ("reduce_scatter", WHOLE): 4}
    # Each product gathers for its weights what was kept split: rows of what it read, or of its gradient.
    assert sent(plain, ".W") == {}
    assert sent(split, ".W") == {("all_gather", WHOLE): 6}


def test_what_lies_between_products_is_split_by_rows() -> None:
    split = layer(sequence=True)
    for name in ("attn_norm", "h", "mlp_norm", "y", "multi_head_attention.o", "gelu_mlp.down", "attn_norm.I", "h.sum"):
        assert split[name][1].leaving == (1,), name
    assert split["gelu_mlp.up"][1].leaving == (2,)
    assert all(
        p.plan.uses != (1,) for name, (_, p) in layer(sequence=False).items() if name != "multi_head_attention.a"
    )


def test_copies_lie_as_their_originals() -> None:
    for policy in ("selective", "full"):
        found = layer(sequence=True, policy=policy)
        copies = [name for name in found if name.endswith(".R")]
        assert copies
        for name in copies:
            assert found[name][1].leaving == found[name.removesuffix(".R")][1].leaving, name


def test_the_option_of_the_pass() -> None:
    tables: list[OperatorOp] = []
    for sequence in (False, True):
        module = load(Source("m.takt", TEXT))
        AnnotateCostsPass(sequence=sequence).apply(Context(), module)
        verify_level(module)
        graph = cast(GraphOp, find_graph(module))
        tables.append({name: op for op, name in operator_names(graph).items()}["gpt_decoder.1.h"])
    plain, split = (op.cost.table()[4] for op in tables if op.cost is not None)
    assert (plain.output, split.output) == (WHOLE, WHOLE // 4)
    assert tables[1].is_sharded(0)
    assert not tables[0].is_sharded(0)
