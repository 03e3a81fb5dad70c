"""The library of blocks: shapes fit, and parameters are those of the layer each block is named after."""

from __future__ import annotations

from pathlib import Path

import pytest

from dialects.diagnostics import TaktError
from dialects.structure import GraphOp, find_graph
from frontend import Source, load, parse

LIBRARY = Path(__file__).parent.parent / "frontend" / "lib"
D, H, VOCAB, BYTES = 64, 256, 1000, 2
TOKENS = f"input x: tensor<2 x 16 x {D}, bf16>"
MEMORY = f"{TOKENS} input m: tensor<2 x 24 x {D}, bf16>"
IDS = "input x: tensor<2 x 16, i32>"
IMAGES = "input x: tensor<2 x 64 x 32 x 32, bf16>"
MHA, MLP, LAYER_NORM = 4 * D * D + 4 * D, 2 * D * H + H + D, 2 * D


def graph_of(inputs: str, call: str) -> GraphOp:
    imports = "".join(f'import "takt/{path.name}"\n' for path in sorted(LIBRARY.glob("*.takt")))
    module = load(Source("block.takt", f"{imports}model m {{ {inputs} y = {call} output y }}"))
    graph = find_graph(module)
    assert graph is not None
    return graph


# Inputs, call, parameters, shape of the result.
CASES: dict[str, tuple[str, str, int, tuple[int, ...]]] = {
    "multi_head_attention": (MEMORY, "multi_head_attention(x, m, heads = 4)", MHA, (2, 16, D)),
    "rotary_attention": (
        TOKENS,
        "rotary_attention(x, heads = 4, kv_heads = 2)",
        2 * D * D + 2 * D * D // 2,
        (2, 16, D),
    ),
    "gelu_mlp": (TOKENS, "gelu_mlp(x)", MLP, (2, 16, D)),
    "relu_mlp": (TOKENS, "relu_mlp(x)", 2 * D * H, (2, 16, D)),
    "gated_mlp": (TOKENS, f"gated_mlp(x, hidden = {H})", 3 * D * H, (2, 16, D)),
    "gpt_decoder": (TOKENS, "gpt_decoder(x, heads = 4)", 12 * D * D + 13 * D, (2, 16, D)),
    "llama_decoder": (
        TOKENS,
        f"llama_decoder(x, heads = 4, kv_heads = 2, hidden = {H})",
        3 * D * D + 3 * D * H + 2 * D,
        (2, 16, D),
    ),
    "encoder": (TOKENS, "encoder(x, heads = 4)", 12 * D * D + 13 * D, (2, 16, D)),
    "cross_decoder": (MEMORY, "cross_decoder(x, m, heads = 4)", 2 * MHA + MLP + 3 * LAYER_NORM, (2, 16, D)),
    "t5_encoder": (TOKENS, "t5_encoder(x, heads = 4, head_dim = 32)", 4 * D * 128 + 2 * D * H + 2 * D, (2, 16, D)),
    "t5_decoder": (MEMORY, "t5_decoder(x, m, heads = 4)", 8 * D * D + 2 * D * H + 3 * D, (2, 16, D)),
    "moe_mlp": (
        TOKENS,
        f"moe_mlp(x, experts = 4, top_k = 2, hidden = {H}, gated = false)",
        4 * D + 4 * 2 * D * H,
        (2, 16, D),
    ),
    "moe_decoder": (
        TOKENS,
        f"moe_decoder(x, heads = 4, experts = 4, top_k = 2, hidden = {H})",
        4 * D * D + 4 * D + 4 * 3 * D * H + 2 * D,
        (2, 16, D),
    ),
    # A batch_norm holds scale, shift, mean and variance.
    "conv_bn": (
        IMAGES,
        "conv_bn(x, channels = 32, kernel = 3, groups = 2)",
        32 * 32 * 9 + 4 * 32,
        (2, 32, 32, 32),
    ),
    "conv_bn_relu": (
        IMAGES,
        "conv_bn_relu(x, channels = 32, kernel = 7, stride = 2)",
        32 * 64 * 49 + 4 * 32,
        (2, 32, 16, 16),
    ),
    "bottleneck": (
        IMAGES,
        "bottleneck(x, width = 16)",
        64 * 16 + 16 * 16 * 9 + 16 * 64 + 4 * (16 + 16 + 64),
        (2, 64, 32, 32),
    ),
    "bottleneck_projected": (
        IMAGES,
        "bottleneck_projected(x, width = 32, stride = 2)",
        64 * 32 + 32 * 32 * 9 + 32 * 128 + 64 * 128 + 4 * (32 + 32 + 128 + 128),
        (2, 128, 16, 16),
    ),
    "token_embedding": (IDS, f"token_embedding(x, vocab = {VOCAB}, dim = {D})", VOCAB * D, (2, 16, D)),
    "token_position_embedding": (
        IDS,
        f"token_position_embedding(x, vocab = {VOCAB}, dim = {D})",
        VOCAB * D + 16 * D,
        (2, 16, D),
    ),
    "lm_head": (TOKENS, f"lm_head(x, vocab = {VOCAB})", LAYER_NORM + D * VOCAB, (2, 16, VOCAB)),
    "lm_loss": (
        f"{TOKENS} input l: tensor<2 x 16, i32>",
        f"lm_loss(x, l, vocab = {VOCAB})",
        LAYER_NORM + D * VOCAB,
        (),
    ),
    "rms_lm_head": (TOKENS, f"rms_lm_head(x, vocab = {VOCAB})", D + D * VOCAB, (2, 16, VOCAB)),
    "rms_lm_loss": (f"{TOKENS} input l: tensor<2 x 16, i32>", f"rms_lm_loss(x, l, vocab = {VOCAB})", D + D * VOCAB, ()),
    "rms_next_token_head": (TOKENS, f"rms_next_token_head(x, vocab = {VOCAB})", D + D * VOCAB, (2, 1, VOCAB)),
}


@pytest.mark.parametrize("block", CASES)
def test_block_has_the_parameters_and_the_shape_of_its_layer(block: str) -> None:
    inputs, call, params, shape = CASES[block]
    graph = graph_of(inputs, call)
    assert sum(op.params.value.data for op in graph.operators()) == params * BYTES
    (result,) = graph.outputs.operands
    assert result.type.get_shape() == shape


def test_every_block_of_the_library_is_tested() -> None:
    blocks = {
        declaration.name.name
        for path in LIBRARY.glob("*.takt")
        for declaration in parse(Source.read(str(path))).declarations
        if type(declaration).__name__ == "Block"
    }
    assert blocks == set(CASES)


def test_bottleneck_refuses_other_channels_by_both_shapes() -> None:
    with pytest.raises(TaktError) as caught:
        graph_of(IMAGES, "bottleneck(x, width = 32)")
    message = caught.value.diagnostics[0].message
    assert "tensor<2 x 64 x 32 x 32, bf16>" in message
    assert "tensor<2 x 128 x 32 x 32, bf16>" in message
