"""Every operator on tensors: shapes and parameters as the language has them, parts that make the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from xdsl.dialects.builtin import TensorType

from compiler.runtime.job import Forward, Operator, Value
from dialects.nn.needs import Role, roles
from dialects.operators import ELEMENT_TYPES, OPERATORS, OperatorOp, element_bytes, tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


BY_KIND: Mapping[str, type[OperatorOp]] = {cls.kind(): cls for cls in OPERATORS}

Shape = tuple[int, ...]
X: Shape = (2, 8, 6)
SPLIT = ["linear", "attention", "embedding", "experts", "conv2d", "matmul"]
"""Kinds whose parts are less than the whole, beside those that go element by element."""

CASES: list[tuple[str, list[Shape | tuple[Shape, str]], dict[str, Any]]] = [
    ("linear", [X], {"features": 10}),
    ("linear", [X], {"features": 10, "bias": True}),
    ("linear", [X], {"features": 10, "bias": True, "split": "row"}),
    ("linear", [(5,)], {"features": 1, "split": "row"}),
    ("linear", [((3, 4), "i32")], {"features": 3}),
    ("matmul", [X, (2, 6, 5)], {}),
    ("matmul", [X, (6, 5)], {}),
    ("matmul", [X, (2, 5, 6)], {"transpose_b": True}),
    ("attention", [X, (2, 9, 6), (2, 9, 6)], {"heads": 3}),
    ("attention", [(2, 8, 12), (2, 9, 6), (2, 9, 6)], {"heads": 4, "kv_heads": 2, "causal": True}),
    ("attention", [X, (2, 3, 6), (2, 3, 6)], {"heads": 2, "causal": True}),
    ("layer_norm", [X], {}),
    ("rms_norm", [X], {}),
    ("batch_norm", [(2, 3, 5, 5)], {}),
    ("softmax", [X], {}),
    ("softmax", [X], {"axis": 1}),
    ("embedding", [((2, 8), "i32")], {"vocab": 100, "dim": 4}),
    ("embedding", [((2,), "i64")], {"vocab": 7, "dim": 4, "dtype": "f64"}),
    ("position_embedding", [X], {}),
    ("rotary", [X], {}),
    *((kind, [X, X], {}) for kind in ("add", "sub", "mul", "residual")),
    *((kind, [X], {}) for kind in ("gelu", "relu", "silu", "tanh", "sigmoid")),
    ("add", [(), ()], {}),
    ("sub", [((9,), "i1"), ((9,), "i1")], {}),
    ("router", [X], {"experts": 4, "top_k": 2}),
    ("router", [X], {"experts": 4, "top_k": 4}),
    ("experts", [X, (2, 8, 4)], {"experts": 4, "top_k": 2, "hidden": 9}),
    ("experts", [X, (2, 8, 4)], {"experts": 4, "top_k": 4, "hidden": 9, "gated": False}),
    ("conv2d", [(1, 3, 8, 9)], {"channels": 4, "kernel": 3}),
    (
        "conv2d",
        [(1, 4, 8, 9)],
        {"channels": 6, "kernel": 3, "stride": 2, "padding": 1, "groups": 2, "bias": True},
    ),
    ("max_pool", [(1, 3, 8, 8)], {"kernel": 3, "stride": 2, "padding": 1}),
    ("avg_pool", [(1, 3, 8, 8)], {"kernel": 3, "stride": 2, "padding": 1}),
    ("global_avg_pool", [(1, 3, 8, 8)], {}),
    ("concat", [X, (2, 3, 6)], {"axis": 1}),
    ("concat", [X], {"axis": -1}),
    ("split", [X], {"parts": 3, "axis": -1}),
    ("reshape", [X], {"shape": (16, 6)}),
    ("transpose", [X], {"order": (2, 0, 1)}),
    ("slice", [X], {"axis": 1, "start": 5, "length": 3}),
    ("reduce", [X], {"axis": 1, "kind": "mean"}),
    ("reduce", [X], {"axis": 0, "kind": "max"}),
    ("reduce", [((5,), "i64")], {"axis": -1}),
    ("cross_entropy", [X, ((2, 8), "i32")], {}),
    ("mse_loss", [X, X], {}),
    ("op", [X, ((5,), "i64")], {"sizes": (13, 1, 0, 500)}),
    ("op", [], {"sizes": (3,)}),
]


def operator(kind: str, given: Sequence[Shape | tuple[Shape, str]], arguments: dict[str, Any]) -> tuple[Operator, int]:
    """An operator as a job has it, and the bytes of its parameters by the shape rule."""
    if kind == "op":
        results = tuple(Value(f"r{i}", (size,), "i8", size) for i, size in enumerate(arguments["sizes"]))
        return Operator("a", kind, {}, 0, 0, ((0,),), (), results), 0
    types = [TensorType(ELEMENT_TYPES[element], shape) for shape, element in map(typed, given)]
    signature = BY_KIND[kind].signature()
    full = {name: arguments.get(name, default) for name, (_, default, _) in signature.items()}
    found = BY_KIND[kind].infer(types, full)
    results = tuple(
        Value(f"r{i}", r.get_shape(), str(r.element_type), tensor_bytes(r)) for i, r in enumerate(found.results)
    )
    known = {name: value for name, value in full.items() if value is not None}
    return Operator("a", kind, known, 0, 0, ((0,),), (), results), found.params


def typed(given: Any) -> tuple[Shape, str]:
    return given if given and isinstance(given[-1], str) else (given, "bf16")


def operands(given: Sequence[Shape | tuple[Shape, str]]) -> list[Tensor]:
    torch = pytest.importorskip("torch")
    from compiler.runtime.torch_values import real_type

    source = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 7, shape, generator=source).to(real_type(element))
        if element.startswith("i")
        else torch.randn(shape, generator=source, dtype=real_type(element))
        for shape, element in map(typed, given)
    ]


def computed(kind: str, given: Sequence[Any], arguments: dict[str, Any], part: int = 0, parts: int = 1) -> Any:
    from compiler.runtime.torch_calls import Call
    from compiler.runtime.torch_operators import run
    from compiler.runtime.torch_values import Parameters

    return run(Call(operator(kind, given, arguments)[0], operands(given), Parameters(0), part, parts))


def test_every_kind_is_here() -> None:
    pytest.importorskip("torch")
    from compiler.runtime.torch_operators import KINDS

    assert set(KINDS) == set(BY_KIND) == {kind for kind, _, _ in CASES}


@pytest.mark.parametrize(("kind", "given", "arguments"), CASES)
def test_shapes_and_parameters_are_those_of_the_language(kind: str, given: Any, arguments: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from compiler.runtime.torch_calls import Call
    from compiler.runtime.torch_operators import run
    from compiler.runtime.torch_values import Parameters, real_type

    asked: dict[str, int] = {}

    class Noted(Parameters):
        def get(self, operator: Operator, role: str, shape: Any, *rest: Any) -> Tensor:
            found = super().get(operator, role, shape, *rest)
            asked[role] = found.numel()
            return found

    made, params = operator(kind, given, arguments)
    results, _ = run(Call(made, operands(given), Noted(0)))
    for result, value in zip(results, made.results, strict=True):
        assert result.numel() == torch.Size(value.shape).numel()
        assert result.reshape(value.shape).dtype == real_type(value.element)
        assert result.isfinite().all()
        if result.numel() > 1:
            assert result.unique().numel() > 1
    if kind != "op":
        assert sum(asked.values()) * element_bytes(ELEMENT_TYPES[made.results[0].element]) == params


@pytest.mark.parametrize(("kind", "given", "arguments"), CASES)
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_make_the_whole(kind: str, given: Any, arguments: dict[str, Any], parts: int) -> None:
    torch = pytest.importorskip("torch")
    made, _ = operator(kind, given, arguments)
    whole, _ = computed(kind, given, arguments)
    pieces = [computed(kind, given, arguments, part, parts) for part in range(parts)]
    rule = pieces[0][1]
    assert all(rule == other for _, other in pieces)
    for number, value in enumerate(made.results):
        found = [results[number] for results, _ in pieces]
        if rule.dim is not None:
            assert [x.shape[rule.dim] for x in found] == rule.sizes(parts)
        elif not rule.added:
            assert all(x.equal(found[0]) for x in found)
        whole_again = torch.cat(found, rule.dim) if rule.dim is not None else found[0]
        together = (sum(found) if rule.added else whole_again).reshape(value.shape)
        torch.testing.assert_close(together, whole[number].reshape(value.shape), rtol=1e-5, atol=1e-6)
    if kind in SPLIT:
        # They are no parts if each is the whole.
        assert rule.added or rule.dim is not None
        assert not all(x.shape == whole[0].shape and x.allclose(whole[0]) for x in found)


# --- what they compute -----------------------------------------------------------------------


def test_attention_is_that_of_the_textbook() -> None:
    torch = pytest.importorskip("torch")
    given = [(1, 4, 12), (1, 6, 6), (1, 6, 6)]
    (found,), _ = computed("attention", given, {"heads": 4, "kv_heads": 2, "causal": True})
    q, k, v = operands(given)
    for head in range(4):
        mine, theirs = slice(3 * head, 3 * head + 3), slice(3 * (head // 2), 3 * (head // 2) + 3)
        for row in range(4):
            seen = slice(0, row + 3)  # the last of 4 rows sees all 6
            weights = torch.softmax(k[0, seen, theirs] @ q[0, row, mine] / 3**0.5, 0)
            torch.testing.assert_close(found[0, row, mine], weights @ v[0, seen, theirs])


def test_rows_that_see_nothing_are_zero() -> None:
    (found,), _ = computed("attention", [X, (2, 3, 6), (2, 3, 6)], {"heads": 2, "causal": True})
    assert found[:, :5].eq(0).all()
    assert found[:, 5:].ne(0).all()


def test_products_with_parameters_keep_their_size() -> None:
    for kind, given, arguments in (
        ("linear", [(4, 512)], {"features": 512}),
        ("conv2d", [(1, 64, 8, 8)], {"channels": 64, "kernel": 3}),
        ("embedding", [((100,), "i32")], {"vocab": 1000, "dim": 64}),
        ("op", [(1000,)], {"sizes": (10,)}),
        ("op", [(10,)], {"sizes": (1000,)}),
    ):
        (found,), _ = computed(kind, given, arguments)
        assert 0.6 < found.square().mean().sqrt() < 1.6, kind


def test_rotation_turns_by_position() -> None:
    torch = pytest.importorskip("torch")
    from compiler.runtime.torch_calls import Call
    from compiler.runtime.torch_operators import run
    from compiler.runtime.torch_values import Parameters

    made, _ = operator("rotary", [(9, 4)], {})
    row = torch.randn(4, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    (found,), _ = run(Call(made, [row.expand(9, 4)], Parameters(0)))
    torch.testing.assert_close(found[0], row)
    # What two positions have in common depends on how far apart they are, and a turn keeps lengths.
    torch.testing.assert_close(found[1] @ found[4], found[5] @ found[8])
    torch.testing.assert_close(found[8].norm(), row.norm())
    assert (found[8] - row).norm() > 0.1


def test_a_router_chooses_and_its_choice_does_not_jump() -> None:
    (found,), _ = computed("router", [(500, 6)], {"experts": 8, "top_k": 2})
    assert found.gt(0).sum(-1).le(2).all()
    assert found.gt(0).sum(-1).float().mean() > 1.99
    assert found.gt(0).any(0).all()
    # The second choice comes as near to nothing as one likes.
    assert found[found > 0].min() < 1e-3


def test_experts_are_a_mixture() -> None:
    torch = pytest.importorskip("torch")
    from compiler.runtime.torch_calls import Call
    from compiler.runtime.torch_operators import run
    from compiler.runtime.torch_values import Parameters

    made, _ = operator("experts", [(3, 6), (3, 4)], {"experts": 4, "top_k": 2, "hidden": 5})
    x, parameters = operands([(3, 6)])[0], Parameters(0)

    def mixed(*rows: list[float]) -> Tensor:
        return run(Call(made, [x, torch.tensor(rows)], parameters))[0][0]

    alone = [mixed(*[[float(e == expert) for e in range(4)]] * 3) for expert in range(4)]
    both = mixed([0, 0.5, 0, 2], [0, 0, 0, 0], [1, 0, 0, 0])
    torch.testing.assert_close(both[0], 0.5 * alone[1][0] + 2 * alone[3][0])
    assert both[1].eq(0).all()
    torch.testing.assert_close(both[2], alone[0][2])
    up, down, gate = (parameters.get(made, role, (20, 6), x.dtype, 0, slice(0, 20)) for role in ("up", "down", "gate"))
    h = torch.nn.functional.silu(x @ gate[5:10].T / 6**0.5) * (x @ up[5:10].T / 6**0.5)
    torch.testing.assert_close(alone[1], h @ down[5:10] / 5**0.5)


@pytest.mark.parametrize("sizes", [(1,), (7,), (64,), (1000,)])
def test_every_number_of_an_operand_shows_in_an_opaque_result(sizes: tuple[int, ...]) -> None:
    from compiler.runtime.reference import relative_error
    from compiler.runtime.torch_calls import Call
    from compiler.runtime.torch_operators import run
    from compiler.runtime.torch_values import Parameters

    made, _ = operator("op", [(64,), (32,)], {"sizes": sizes})
    x, y = operands([(64,), (32,)])
    parameters = Parameters(0)

    def mixed(x: Tensor) -> Tensor:
        return run(Call(made, [x, y], parameters))[0][0]

    whole = mixed(x)
    swapped = x.reshape(4, 16)[[0, 2, 1, 3]].reshape(-1)
    assert relative_error(mixed(swapped), whole) > 1e-3
    for place in range(64):
        changed = x.clone()
        changed[place] = 0.0
        assert relative_error(mixed(changed), whole) > 1e-4


def test_a_change_goes_through_a_long_chain_of_opaque_operators() -> None:
    from compiler.runtime.reference import relative_error
    from compiler.runtime.torch_calls import Call
    from compiler.runtime.torch_operators import run
    from compiler.runtime.torch_values import Parameters

    (x,), parameters = operands([(100,)]), Parameters(0)
    changed = x.clone()
    changed[50] += 0.1
    for layer in range(200):
        made, _ = operator("op", [(100,)], {"sizes": (100,)})
        made = Operator(f"layer.{layer}", "op", {}, 0, 0, ((0,),), (), made.results)
        (x,), _ = run(Call(made, [x], parameters))
        (changed,), _ = run(Call(made, [changed], parameters))
    assert 1e-3 < relative_error(changed, x) < 1
    assert 0.5 < x.square().mean() < 2


def gradients(kind: str, given: Any, arguments: dict[str, Any], xs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the operands of floating-point numbers, for fixed gradients of the results."""
    torch = pytest.importorskip("torch")
    from compiler.runtime.torch_calls import Call
    from compiler.runtime.torch_operators import run
    from compiler.runtime.torch_values import Parameters

    xs = [x.clone().requires_grad_(x.is_floating_point()) for x in xs]
    results, _ = run(Call(operator(kind, given, arguments)[0], xs, Parameters(0)))
    source = torch.Generator().manual_seed(3)
    total = sum((r * torch.randn(r.shape, generator=source)).sum() for r in results)
    return list(torch.autograd.grad(total, [x for x in xs if x.requires_grad], materialize_grads=True))


@pytest.mark.parametrize(
    ("kind", "given", "arguments"),
    [case for case in CASES if case[1] and typed(case[1][0])[1] == "bf16" and case[0] not in ("op", "batch_norm")],
)
def test_gradients_depend_on_what_a_training_graph_keeps_and_on_nothing_else(
    kind: str, given: Any, arguments: dict[str, Any]
) -> None:
    """A batch norm is left out: here it has given statistics, and in training those of the batch."""
    torch = pytest.importorskip("torch")
    kept = roles(kind, False, len(given), [0], arguments.get("kind") == "max")
    xs = operands(given)
    usual = gradients(kind, given, arguments, xs)
    for i, x in enumerate(xs):
        other = [
            *xs[:i],
            x.flatten().roll(1).reshape(x.shape) * 2 + 1 if x.is_floating_point() else 6 - x,
            *xs[i + 1 :],
        ]
        found = gradients(kind, given, arguments, other)
        same = all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(usual, found, strict=True))
        # A result that is kept stands for the operands that it is made of.
        assert same != any(role.what == "result" or role == Role("operand", i) for role in kept)


# --- gradients of parts ----------------------------------------------------------------------


def gradient(kind: str, given: Any, arguments: dict[str, Any], weight: bool, loss: bool) -> Operator:
    """A gradient operator of a case; of several results, the gradient of the first does not arrive."""
    forward, _ = operator(kind, given, arguments)
    types = list(map(typed, given))
    xs = tuple(Value("x", shape, element, 0) for shape, element in types)
    count = len(forward.results)
    arriving = () if loss else tuple(range(min(1, count - 1), count))
    made = tuple(i for i, (_, element) in enumerate(types) if kind == "op" or not element.startswith("i"))
    of = Forward(kind, forward.arguments, xs, forward.results, arriving, () if weight else made)
    results = [xs[i] for i in made]
    if kind == "experts":
        hidden = (3 if forward.arguments["gated"] else 2) * arguments["hidden"]
        visits = types[0][0][0] * types[0][0][1] * arguments["top_k"]
        results.append(Value("handed", (visits, hidden), "bf16", 0))
    name = "weight_gradient" if weight else "input_gradient"
    return Operator("a.I", name, {}, 0, 0, ((0,),), (), () if weight else tuple(results), group="a", of=of)


def together(pieces: Sequence[Tensor], rule: Any, shape: Shape, parts: int) -> Tensor:
    torch = pytest.importorskip("torch")
    if rule.dim is not None:
        assert [x.shape[rule.dim] for x in pieces] == rule.sizes(parts)
        return torch.cat(list(pieces), rule.dim).reshape(shape)
    if not rule.added:
        assert all(x.equal(pieces[0]) for x in pieces)
    return (sum(pieces[1:], pieces[0]) if rule.added else pieces[0]).reshape(shape)


class Differentiated:
    """The gradients that torch makes of a whole operator, for random gradients of those results that arrive."""

    def __init__(self, kind: str, given: Any, arguments: dict[str, Any], of: Forward):
        torch = pytest.importorskip("torch")
        from compiler.runtime.torch_calls import Call
        from compiler.runtime.torch_operators import run
        from compiler.runtime.torch_values import Parameters

        class Leaves(Parameters):
            def get(self, *args: Any, **options: Any) -> Tensor:
                return super().get(*args, **options).requires_grad_()

        source, parameters = torch.Generator().manual_seed(3), Leaves(0)
        self.xs = [x.requires_grad_(x.is_floating_point()) for x in operands(given)]
        forward = Operator("a", kind, of.arguments, 0, 0, ((0,),), (), of.results, group="a")
        made, _ = run(Call(forward, self.xs, parameters))
        self.results = [y.reshape(v.shape) for y, v in zip(made, of.results, strict=True)]
        self.arriving = [torch.randn(y.shape, generator=source, dtype=y.dtype) for y in self.results]
        seeds = {r: self.arriving[r] for r in of.arriving} or {0: torch.ones(())}
        leaves = [*(x for x in self.xs if x.requires_grad), *parameters.held.values()]
        total = sum((self.results[r] * g).sum() for r, g in seeds.items())
        found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        self.of_operands = found[: len(found) - len(parameters.held)]
        self.of_parameters = dict(zip(parameters.held, found[len(self.of_operands) :], strict=True))
        self.xs, self.results = [x.detach() for x in self.xs], [y.detach() for y in self.results]

    def read(self, of: Forward, weight: bool, handed: Tensor | None) -> list[Tensor]:
        known: dict[str, Any] = {"gradient": self.arriving, "operand": self.xs, "result": self.results}
        maximum = of.arguments.get("kind") == "max"
        found = roles(of.kind, weight, len(self.xs), of.arriving, maximum)
        return [(known | {"handed": [handed]})[role.what][role.number] for role in found]


SMOOTH = [
    case
    for case in CASES
    if case[1] and (case[0] in ("op", "embedding") or any(not typed(x)[1].startswith("i") for x in case[1]))
] + [
    ("attention", [(2, 8, 12), (2, 9, 4), (2, 9, 4)], {"heads": 6, "kv_heads": 2}),
    ("softmax", [X], {"axis": 0}),
    ("router", [(2, 40, 6)], {"experts": 8, "top_k": 3}),
]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(("kind", "given", "arguments"), SMOOTH)
def test_parts_make_the_gradients_of_the_whole(kind: str, given: Any, arguments: dict[str, Any], parts: int) -> None:
    torch = pytest.importorskip("torch")
    from compiler.runtime.torch_calls import Call
    from compiler.runtime.torch_gradients import run_input, run_weight
    from compiler.runtime.torch_values import Parameters, cut

    loss = kind in ("cross_entropy", "mse_loss")
    back = gradient(kind, given, arguments, weight=False, loss=loss)
    assert back.of is not None
    torchs = Differentiated(kind, given, arguments, back.of)
    handed = None
    if back.of.made:
        reads = torchs.read(back.of, False, None)
        pieces = [run_input(Call(back, reads, Parameters(0), part, parts)) for part in range(parts)]
        rules = pieces[0][1]
        assert all(rules == other for _, other in pieces)
        found = [
            together([made[n] for made, _ in pieces], rule, value.shape, parts)
            for n, (value, rule) in enumerate(zip(back.results, rules, strict=True))
        ]
        for mine, theirs in zip(found, torchs.of_operands, strict=False):
            torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=1e-5, atol=2e-6)
        handed = found[-1] if kind == "experts" else None
    back = gradient(kind, given, arguments, weight=True, loss=loss)
    if not torchs.of_parameters:
        return
    assert back.of is not None
    reads = torchs.read(back.of, True, handed)
    shares = [run_weight(Call(back, reads, Parameters(0), part, parts)) for part in range(parts)]
    assert {key for found in shares for key, _ in found} == {key for key, _ in torchs.of_parameters}
    for (key, _), whole in torchs.of_parameters.items():
        seen = torch.zeros(key.shape)
        for found in shares:
            ((part, mine),) = [(part, x) for (k, part), x in found.items() if k == key]
            torch.testing.assert_close(mine, cut(whole, part), rtol=1e-5, atol=1e-5)
            cut(seen, part).add_(1)
        # Shares make the whole, or every part has it.
        assert seen.unique().tolist() in ([], [1], [parts])
