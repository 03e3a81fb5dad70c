"""What the language means: every feature, seen in the IR of level 0."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest

from dialects.attributes import values
from dialects.operators import OPERATORS, OperatorOp, show, tensor_bytes
from dialects.structure import GraphOp, find_platform
from frontend import Source, load, parse
from frontend.dump import show_ast
from frontend.evaluate import evaluate
from frontend.parser import parse_expression
from frontend.scope import FileConstants
from frontend.units import Quantity

Graphs = Callable[..., GraphOp]
Operators = Callable[..., dict[str, OperatorOp]]


def model(body: str) -> str:
    return "model m {\n input x: tensor<4 x 8, bf16>\n" + body + "\n}\n"


def test_a_model_keeps_names_types_and_places(graph_of: Graphs) -> None:
    graph = graph_of("model gpt {\n  input x: tensor<2 x 8, bf16>\n  y = linear(x, features = 16)\n  output y\n}\n")
    assert (graph.sym_name.data, graph.level.data) == ("gpt", "model")
    (source,) = graph.inputs()
    (op,) = graph.operators()
    assert source.output.name_hint == "x"
    assert op.results[0].name_hint == "y"
    assert show(op.results[0].type) == "tensor<2 x 16, bf16>"
    assert op.params.value.data == 8 * 16 * 2
    assert [v for v in graph.outputs.operands] == [op.results[0]]
    place = op.location
    assert (place.filename.data, place.line.data, place.column.data) == ("f.takt", 3, 3)  # pyright: ignore
    assert op.cost is None
    assert op.block is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 4 - 3", 3),
        ("12 / 2 / 3", 2),
        ("-2 * 3 + 1", -5),
        ("17 % 5", 2),
        ("div(17, 5)", 3),
        ("div(-1, 2)", -1),
        ("min(4, 2, 3) + max(1, 5)", 7),
        ("1.5 * 2", 3),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("1e3", 1000),
        ("1_000", 1000),
        ("2.5e-1", Fraction(1, 4)),
        ("true", True),
        ('"row"', "row"),
        ("[1, 2 + 3,]", [1, 5]),
        ("[1] + [2]", [1, 2]),
        ("80 GiB", Quantity("size", 80 * 2**30)),
        ("2039 GB/s", Quantity("bandwidth", 2039 * 10**9)),
        ("312 TFLOP/s", Quantity("rate", 312 * 10**12)),
        ("19.5 TFLOP/s", Quantity("rate", 195 * 10**11)),
        ("1.5us", Quantity("time", 1500)),
        ("1 ms + 2 us - 3 ns", Quantity("time", 1_001_997)),
        ("2 * 3 KiB", Quantity("size", 6144)),
        ("6 KiB / 4", Quantity("size", 1536)),
        ("6 KiB / 2 KiB", 3),
        ("-5 us", Quantity("time", -5000)),
        ("max(1 us, 900 ns)", Quantity("time", 1000)),
    ],
)
def test_constants(text: str, value: object) -> None:
    found = evaluate(parse_expression(text, "f"), FileConstants({}))
    assert found == value
    assert type(found) is type(value)


def test_constants_of_a_file_and_of_a_body(operators_of: Operators) -> None:
    ops = operators_of(
        "const k = 4\nconst wide = 3 * k\n"
        + model(" const twice = 2 * wide\n y = linear(x, features = twice) output y")
    )
    assert ops["y"].arguments()["features"] == 24


def test_params_and_overrides(operators_of: Operators) -> None:
    text = (
        "model m {\n param layers = 2\n param b\n param f = 4 * layers\n input x: tensor<b x 8, bf16>\n"
        " repeat layers carry x {\n x = linear(x, features = 8)\n}\n y = linear(x, features = f)\n output y\n}\n"
    )
    assert list(operators_of(text, {"b": "3"})) == ["x.0", "x.1", "y"]
    ops = operators_of(text, {"b": "1 + 1", "layers": "3"})
    assert list(ops) == ["x.0", "x.1", "x.2", "y"]
    assert show(ops["y"].results[0].type) == "tensor<2 x 12, bf16>"


def test_blocks_bind_dimensions_and_element_types(operators_of: Operators) -> None:
    ops = operators_of(
        "block mlp(x: tensor<b x d, t>; hidden = 4 * d, bias = true) -> y {\n"
        " h = linear(x, features = hidden, bias = bias)\n y = linear(h, features = d)\n}\n"
        + model(" a = mlp(x)\n b = mlp(x = a, hidden = 5, bias = false)\n output b")
    )
    assert list(ops) == ["mlp.0.h", "mlp.0.y", "mlp.1.h", "mlp.1.y"]
    assert ops["mlp.0.h"].arguments() == {"features": 32, "bias": True, "split": "column"}
    assert ops["mlp.1.h"].arguments() == {"features": 5, "bias": False, "split": "column"}
    block = ops["mlp.1.y"].block
    assert block is not None
    assert (block.block.data, block.index.data) == ("mlp", 1)


def test_a_type_can_fix_a_constant_parameter(operators_of: Operators) -> None:
    text = (
        "block f(x: tensor<b x (2 * half), t>; half) -> y {\n y = linear(x, features = half)\n}\n"
        "block g(x: tensor<b x d, t>; d) -> y {\n y = linear(x, features = d)\n}\n"
    )
    ops = operators_of(text + model(" a = f(x, half = 4)\n b = g(a)\n output b"))
    assert show(ops["f.0.y"].results[0].type) == "tensor<4 x 4, bf16>"
    assert show(ops["g.0.y"].results[0].type) == "tensor<4 x 4, bf16>"


def test_an_element_type_bound_by_a_block_is_a_text(operators_of: Operators) -> None:
    text = (
        "block f(x: tensor<b x d, t>, ids: tensor<b, i32>) -> y {\n"
        " e = embedding(ids, vocab = 10, dim = d, dtype = t)\n y = add(x, e)\n}\n"
    )
    ops = operators_of(
        text + "model m {\n input x: tensor<4 x 8, f16>\n input ids: tensor<4, i32>\n y = f(x, ids)\n output y\n}\n"
    )
    assert show(ops["f.0.e"].results[0].type) == "tensor<4 x 8, f16>"


def test_several_results_and_untyped_parameters(operators_of: Operators) -> None:
    text = "block two(x) -> (p, q) {\n p = gelu(x) q = silu(x)\n}\n"
    ops = operators_of(text + model(" a, b = two(x)\n c = sub(a, b)\n output c, a"))
    assert [v.name_hint for v in ops["c"].operands] == ["two.0.p", "two.0.q"]


def test_operators_with_several_results(operators_of: Operators) -> None:
    ops = operators_of(model(" a, b = split(x, parts = 2, axis = 1)\n y = add(a, b)\n output y"))
    assert [r.name_hint for r in ops["a"].results] == ["a", "b"]


def test_repetition_carries_values(operators_of: Operators) -> None:
    ops = operators_of(
        model(
            " s = gelu(x)\n repeat 3 as i carry x, s {\n h = linear(x, features = 8 + 0 * i)\n s = add(s, h)\n"
            " x = gelu(h)\n }\n y = add(x, s)\n output y"
        )
    )
    assert [v.name_hint for v in ops["y"].operands] == ["x.2", "s.2"]
    assert [v.name_hint for v in ops["s.1"].operands] == ["s.0", "h.1"]


def test_repeating_nothing_leaves_carried_values_alone(operators_of: Operators) -> None:
    ops = operators_of(model(" repeat 0 carry x {\n x = gelu(x)\n }\n y = silu(x)\n output y"))
    assert list(ops) == ["y"]
    assert ops["y"].operands[0].name_hint == "x"


def test_names_of_nested_blocks_and_repetitions(operators_of: Operators) -> None:
    text = (
        "block norm(x) -> y {\n y = layer_norm(x)\n}\n"
        "block layer(x) -> y {\n a = norm(x)\n b = norm(a)\n y = tail(b)\n}\n"
        "block tail(x) -> y {\n y = gelu(x)\n repeat 2 carry y {\n h = norm(y)\n y = gelu(h)\n }\n}\n"
    )
    names = list(
        operators_of(
            text + model(" repeat 2 carry x {\n  x = layer(x)\n repeat 2 carry x {\n x = gelu(x)\n }\n }\n output x")
        )
    )
    assert names == [
        "layer.0.a.y", "layer.0.b.y", "layer.0.tail.y", "layer.0.tail.norm.0.y", "layer.0.tail.y.0",
        "layer.0.tail.norm.1.y", "layer.0.tail.y.1", "x.0.0", "x.0.1",
        "layer.1.a.y", "layer.1.b.y", "layer.1.tail.y", "layer.1.tail.norm.0.y", "layer.1.tail.y.0",
        "layer.1.tail.norm.1.y", "layer.1.tail.y.1", "x.1.0", "x.1.1",
    ]  # fmt: skip


def test_names_survive_a_round_trip(graph_of: Graphs) -> None:
    from xdsl.context import Context
    from xdsl.dialects.builtin import Builtin
    from xdsl.parser import Parser

    from dialects.takt import Takt

    text = model(
        " h_1 = gelu(x)\n h_12_3 = gelu(h_1)\n repeat 1 {\n h = gelu(x)\n }\n repeat 2 {\n h = silu(x)\n }\n"
        " output h_12_3"
    )
    module = load(Source("f", text))
    hints = [op.results[0].name_hint for op in module.walk() if isinstance(op, OperatorOp)]
    assert hints == ["h.1", "h_12.3", "h.0", "h.0.v2", "h.1.v2"]
    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(Takt)
    again = Parser(context, str(module)).parse_module()
    assert str(again) == str(module)
    assert [op.results[0].name_hint for op in again.walk() if isinstance(op, OperatorOp)] == hints


def test_written_costs(operators_of: Operators) -> None:
    ops = operators_of(
        model(
            " a = op(x) time [812us, 430us, 251us] params 10 B output 4 KiB memory {1: 2 GiB, 2: 1 GiB}\n"
            " b, c = op(a, x) time {1: 5us, 4: 2us} output [3 B, 6 B]\n"
            " d = op() time [1 ms]\n"
            " e = linear(x, features = 10) time [5us, 3us] memory 1 KiB\n"
            " const size = 2 KiB\n f = op(a) time [1us] output (size)\n"
            " g = op(a)\n   time [1us]\n   output size * 2\n"
            " output d, e"
        )
    )
    cost = ops["a"].cost
    assert cost is not None
    assert {k: (e.time, e.params, e.output, e.workspace) for k, e in cost.table().items()} == {
        1: (812_000, 10, 4096, 2**31), 2: (430_000, 5, 2048, 2**30), 3: (251_000, 4, 1366, 0),
    }  # fmt: skip
    assert show(ops["a"].results[0].type) == "tensor<4096, i8>"
    assert [tensor_bytes(r.type) for r in ops["b"].results] == [3, 6]
    cost = ops["b"].cost
    assert cost is not None
    assert {k: (e.time, e.output) for k, e in cost.table().items()} == {1: (5000, 9), 4: (2000, 3)}
    assert show(ops["d"].results[0].type) == "tensor<0, i8>"
    cost = ops["e"].cost
    assert cost is not None
    assert ops["e"].params.value.data == 160
    assert {k: (e.time, e.params, e.output, e.workspace) for k, e in cost.table().items()} == {
        1: (5000, 160, 80, 1024), 2: (3000, 80, 40, 1024),
    }  # fmt: skip
    assert tensor_bytes(ops["f"].results[0].type) == 2048
    assert tensor_bytes(ops["g"].results[0].type) == 4096


def test_words_of_the_language_may_name_values(operators_of: Operators) -> None:
    ops = operators_of(
        "model m {\n input input: tensor<4 x 8, bf16>\n output = gelu(input)\n time = gelu(output)\n"
        " memory = silu(time)\n"
        " params, x = split(memory, parts = 2, axis = 0)\n x1 = gelu(x)\n xs = gelu(x1)\n repeat = gelu(xs)\n"
        " s = gelu(repeat)\n of = gelu(s)\n output of\n}\n"
    )
    assert list(ops) == ["output", "time", "memory", "params", "x1", "xs", "repeat", "s", "of"]


def test_one_line_and_comments(operators_of: Operators) -> None:
    text = "/* a\n model */ model m { const n = 4 input x: tensor<nx8, f32> // not a name\n }"
    text = text.replace("nx8", "n x 2x8") + "\n"
    text = text.replace(" }\n", " a = gelu(x) b = linear(a, features = n) const k = 2 s = gelu(b) output s }\n")
    ops = operators_of(text)
    assert list(ops) == ["a", "b", "s"]
    assert show(ops["a"].results[0].type) == "tensor<4 x 2 x 8, f32>"


def test_inputs_may_be_outputs_and_scalars_exist(graph_of: Graphs) -> None:
    graph = graph_of("model m {\n input x: tensor<f32>\n input y: tensor<3, i64>\n output x\n output y\n}\n")
    assert [v.name_hint for v in graph.outputs.operands] == ["x", "y"]


def test_platform() -> None:
    module = load(
        Source("m.takt", model(" y = gelu(x)\n output y")),
        platform=Source(
            "p.takt",
            "const per_node = 8\naccelerator a100_80g {\n memory = 80 GiB\n bandwidth = 2039 GB/s\n launch = 4 us\n"
            " peak bf16 = 312 TFLOP/s\n peak f32 = 19.5 TFLOP/s\n compute_efficiency = 0.70\n"
            " memory_efficiency = 0.8\n"
            " saturation = 3 GFLOP\n}\nplatform dgx {\n accelerators = 8 * per_node of a100_80g\n"
            " link node = per_node { latency = 3 us bandwidth = 155 GB/s }\n"
            " link cluster { latency = 30 us bandwidth = 20 GB/s }\n}\n",
        ),
    )
    module.verify()
    platform = find_platform(module)
    assert platform is not None
    assert (platform.sym_name.data, platform.accelerator.data, platform.count) == ("dgx", "a100_80g", 64)
    assert platform.memory.value.data == 80 * 2**30
    assert platform.bandwidth.value.data == 2039 * 10**9
    assert platform.launch.value.data == 4000
    assert platform.peak_rates() == {"bf16": 312 * 10**12, "f32": 195 * 10**11}
    assert platform.compute_efficiency.value.data == pytest.approx(0.7)
    assert platform.saturation.value.data == 3 * 10**9
    links = [(k.group.data, k.size.data, k.latency.data, k.bandwidth.data) for k in platform.links.data]
    assert links == [("node", 8, 3000, 155 * 10**9), ("cluster", 64, 30000, 20 * 10**9)]


def test_the_last_group_of_a_platform_may_be_incomplete() -> None:
    text = (
        "accelerator a {\n memory = 1 GiB bandwidth = 1 GB/s launch = 0 ns peak f32 = 1 TFLOP/s\n}\n"
        "platform p {\n accelerators = 60 of a\n link node = 8 { latency = 1 us bandwidth = 1 GB/s }\n"
        " link all { latency = 2 us bandwidth = 1 GB/s }\n}\n"
    )
    platform = find_platform(load(Source("m.takt", model(" y = gelu(x)\n output y")), platform=Source("p.takt", text)))
    assert platform is not None
    assert [link.size.data for link in platform.links.data] == [8, 60]


def test_a_platform_in_the_model_file_is_used_and_one_given_wins() -> None:
    def platform(name: str, count: int) -> str:
        return (
            "accelerator a {\n memory = 1 GiB bandwidth = 1 GB/s launch = 0 ns peak f32 = 1 TFLOP/s\n}\n"
            f"platform {name} {{\n accelerators = {count} of a\n}}\n"
        )

    source = Source("m.takt", platform("own", 2) + model(" y = gelu(x)\n output y"))
    own = find_platform(load(source))
    given = find_platform(load(source, platform=Source("p.takt", platform("given", 4))))
    assert own is not None
    assert given is not None
    assert (own.sym_name.data, own.count, given.sym_name.data, given.count) == ("own", 2, "given", 4)


def test_choosing_among_models() -> None:
    text = "model a {\n input x: tensor<4, f32>\n output x\n}\nmodel b {\n input x: tensor<4, f32>\n output x\n}\n"
    assert "@b" in str(load(Source("f", text), model="b"))


def test_every_operator_can_be_written(operators_of: Operators) -> None:
    """The front end knows operators only through the registry of the dialect."""
    ops = operators_of(
        "model m {\n input x: tensor<2 x 16 x 32, bf16>\n input i: tensor<2 x 16, i32>\n"
        " input p: tensor<2 x 3 x 32 x 32, bf16>\n"
        " e = embedding(i, vocab = 64, dim = 32)\n pe = position_embedding(e)\n ro = rotary(pe)\n"
        " ln = layer_norm(ro)\n rn = rms_norm(ln)\n q = linear(rn, features = 32, bias = true)\n"
        " at = attention(q, q, q, heads = 4, kv_heads = 4, causal = true)\n tr = transpose(at, order = [0, 2, 1])\n"
        " mm = matmul(at, tr)\n mb = matmul(at, at, transpose_b = true)\n sm = softmax(mm)\n"
        " rs = residual(x, at)\n ad = add(x, rs)\n su = sub(x, ad)\n mu = mul(x, su)\n"
        " g = gelu(mu)\n re = relu(g)\n si = silu(re)\n ta = tanh(si)\n sg = sigmoid(ta)\n"
        " ro2 = router(sg, experts = 4, top_k = 2)\n ex = experts(sg, ro2, experts = 4, top_k = 2, hidden = 64)\n"
        " c = conv2d(p, channels = 8, kernel = 3, padding = 1)\n bn = batch_norm(c)\n"
        " mp = max_pool(bn, kernel = 2, stride = 2)\n"
        " ap = avg_pool(mp, kernel = 2, stride = 2)\n gp = global_avg_pool(ap)\n"
        " cc = concat(x, ex, axis = 2)\n s1, s2 = split(cc, parts = 2, axis = 2)\n"
        " rh = reshape(s1, shape = [32, 32])\n"
        " sl = slice(rh, axis = 0, start = 4, length = 8)\n rd = reduce(sl, axis = 0)\n"
        " lo = linear(x, features = 64)\n ce = cross_entropy(lo, i)\n ms = mse_loss(x, ex)\n"
        " o = op(s2, sm, mb) time [1us]\n output o, rd, gp, ce, ms\n}\n"
    )
    assert {op.kind() for op in ops.values()} == {cls.kind() for cls in OPERATORS}


def test_show_ast() -> None:
    text = show_ast(parse(Source("f.takt", model(" y = linear(x, features = 2 * 3) time [5us]\n output y"))))
    assert text.splitlines()[:3] == ["File f.takt", "  Model @1:1", "    name: m @1:7"]
    assert "callee: linear @3:6" in text
    assert 'Binary "*" @3:27' in text
    assert text.isascii()


def test_backward_and_weights_are_times(operators_of: Operators) -> None:
    ops = operators_of(
        model(
            " a = op(x) time {1: 3us, 4: 1us} backward {4: 3us, 1: 7us} params 4 KiB\n"
            " b = op(a) time [3us, 2us] backward [6us, 4us] weights [1us, 4us]\n"
            " weights = op(b) time [1us]\n output weights"
        )
    )
    times = [
        tuple(None if found is None else values(found) for found in (op.backward_times, op.weights_times))
        for op in ops.values()
    ]
    assert times == [((7000, 3000), None), ((6000, 4000), (1000, 4000)), (None, None)]


def test_backward_is_a_number_and_an_x(operators_of: Operators) -> None:
    ops = operators_of(
        model(
            " const r = 3\n a = op(x) time [1us] backward 2.5x params 4 KiB\n b = op(a) backward r x time [1us]\n"
            " x1 = op(b) time [1us] backward 1.5x output 8 B\n backward = op(x1) time [1us]\n output backward"
        )
    )
    ratios = {name: None if op.backward is None else op.backward.value.data for name, op in ops.items()}
    assert ratios == {"a": 2.5, "b": 3.0, "x1": 1.5, "backward": None}
