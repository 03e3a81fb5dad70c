"""What is written after an operator: its cost ``time [...] params ... output ... memory ...``, and its ``group``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dialects.attributes import CostAttr, CostEntry
from dialects.nn.base import DECIMALS, MOST_RATIO
from dialects.operators import is_group_name
from frontend import ast
from frontend.evaluate import Lookup, Problem, amount, describe, evaluate, is_number, whole
from frontend.report import note
from frontend.units import SIZE, TIME

MAX_ALLOTMENT = 2**20
"""The largest number of accelerators that a table may name."""


@dataclass(frozen=True)
class WrittenCost:
    """What a user wrote about one operator; None for what was left out."""

    times: Mapping[int, int]
    """Allotment → ns."""
    params: int | None
    """Bytes of the whole operator."""
    outputs: tuple[int, ...] | None
    """Bytes of each result."""
    workspace: Mapping[int, int]
    """Allotment → bytes on each accelerator."""
    backward: float | None
    """Time of the gradients together, as a multiple of the operator's own."""
    gradients: tuple[tuple[int, ...], tuple[int, ...] | None] | None
    """Or as ns for each allotment, in increasing order; then that part of them which is of the weights."""

    def attribute(self, params: int, output: int) -> CostAttr:
        """The cost table; ``params`` and ``output`` are bytes shared evenly by the accelerators."""
        return CostAttr.from_table(
            {
                k: CostEntry(time, -(-params // k), -(-output // k), self.workspace.get(k, 0))
                for k, time in self.times.items()
            }
        )


def written_cost(node: ast.Assign, scope: Lookup, accelerators: int | None) -> WrittenCost | None:
    """The cost of a statement, None when none is written; raises Problem or Poisoned.

    ``accelerators`` is the size of the platform, when one is known.
    """
    clauses: dict[str, ast.Clause] = {}
    for clause in node.clauses:
        if clause.kind in clauses:
            first = note(clauses[clause.kind].place, "first written here")
            raise Problem(clause.place, f"'{clause.kind}' is written twice", notes=(first,))
        clauses[clause.kind] = clause
    clauses.pop("group", None)
    if not clauses:
        return None
    if "time" not in clauses:
        first = next(iter(clauses.values()))
        raise Problem(first.place, f"'{first.kind}' needs a table of times before it", "write time [812us, 430us, ...]")
    times = _by_allotment(clauses["time"], scope, TIME, accelerators)
    workspace: Mapping[int, int] = {}
    if memory := clauses.get("memory"):
        workspace = _memory(memory, scope, times, accelerators)
    params = clauses.get("params")
    output = clauses.get("output")
    return WrittenCost(
        times,
        None if params is None else _bytes(params, scope),
        None if output is None else _outputs(output, scope, len(node.targets)),
        workspace,
        *_backward(clauses, scope, times, accelerators),
    )


def _backward(
    clauses: Mapping[str, ast.Clause], scope: Lookup, times: Mapping[int, int], accelerators: int | None
) -> tuple[float | None, tuple[tuple[int, ...], tuple[int, ...] | None] | None]:
    """What is written of gradients: a ratio, or times for each allotment."""
    backward, weights = clauses.get("backward"), clauses.get("weights")
    if weights is not None and (backward is None or not isinstance(backward.value, ast.Table | ast.Items)):
        message = "'weights' is a part of the times of 'backward', which are not written"
        raise Problem(weights.place, message, "write backward [1.6ms, 860us, ...] weights [812us, 430us, ...]")
    if backward is None:
        return None, None
    if not isinstance(backward.value, ast.Table | ast.Items):
        return _ratio(backward, scope), None
    whole = _as_times(backward, scope, times, accelerators)
    if weights is None:
        return None, (tuple(whole.values()), None)
    part = _as_times(weights, scope, times, accelerators)
    if long := next((k for k in part if part[k] > whole[k]), None):
        raise Problem(weights.value.place, f"on {long} the weights take longer than 'backward', which they are part of")
    return None, (tuple(whole.values()), tuple(part.values()))


def _as_times(
    clause: ast.Clause, scope: Lookup, times: Mapping[int, int], accelerators: int | None
) -> Mapping[int, int]:
    """Times of gradients, for the numbers of accelerators of the operator's own, in increasing order."""
    table = _by_allotment(clause, scope, TIME, accelerators)
    if table.keys() != times.keys():
        found, wanted = (", ".join(map(str, sorted(keys))) for keys in (table, times))
        message = f"'{clause.kind}' is for {found} accelerators, but 'time' for {wanted}"
        raise Problem(clause.value.place, message, "an operator and its gradients run on the same accelerators")
    return {k: table[k] for k in sorted(table)}


def written_group(node: ast.Assign, scope: Lookup) -> str | None:
    """The name of the operators with which a statement shares parameters; raises Problem or Poisoned.

    A text, or a list of texts and whole numbers, which are joined by dots.
    """
    clause = next((c for c in node.clauses if c.kind == "group"), None)
    if clause is None:
        return None
    value = None if isinstance(clause.value, ast.Table) else evaluate(clause.value, scope)
    parts: list[Any] = value if isinstance(value, list) else [value]
    good = all(isinstance(part, str | int) and not isinstance(part, bool) and part != "" for part in parts)
    if not good or not any(isinstance(part, str) for part in parts):
        shown = "a table" if value is None else describe(value)
        raise Problem(
            clause.value.place,
            f"a group is named by a text, or by a list of a text and whole numbers, got {shown}",
            'write group "tied", or group ["layer", i] for one group an iteration',
        )
    name = ".".join(str(part) for part in parts)
    if not is_group_name(name):
        raise Problem(clause.value.place, "the name of a group is printable ASCII text")
    return name


def _bytes(clause: ast.Clause, scope: Lookup) -> int:
    if isinstance(clause.value, ast.Table):
        raise Problem(clause.value.place, f"'{clause.kind}' is one size, the bytes of all accelerators together")
    return amount(evaluate(clause.value, scope), clause.value.place, f"'{clause.kind}'", SIZE)


def _ratio(clause: ast.Clause, scope: Lookup) -> float:
    """The number of ``backward 2.0x``."""
    assert not isinstance(clause.value, ast.Table)
    value = evaluate(clause.value, scope)
    if not is_number(value) or not 0 <= value <= MOST_RATIO:
        shown = describe(value)
        message = f"'backward' is a number between 0 and {MOST_RATIO:.0f} times the operator's own time, got {shown}"
        raise Problem(clause.value.place, message, "write backward 2.0x")
    return round(float(value), DECIMALS)


def _outputs(clause: ast.Clause, scope: Lookup, results: int) -> tuple[int, ...]:
    value = clause.value
    if isinstance(value, ast.Table):
        raise Problem(value.place, "'output' is one size for each result")
    if isinstance(value, ast.Items):
        sizes = tuple(amount(evaluate(v, scope), v.place, "'output'", SIZE) for v in value.items)
    else:
        sizes = (_bytes(clause, scope),)
    if len(sizes) != results:
        raise Problem(
            value.place,
            f"{len(sizes)} output sizes for {results} results",
            "write one size for each result: output [4 MiB, 8 KiB]",
        )
    if sum(sizes) >= 2**63:
        raise Problem(value.place, "the results together have 2^63 bytes or more")
    return sizes


def _by_allotment(clause: ast.Clause, scope: Lookup, dimension: str, accelerators: int | None) -> dict[int, int]:
    """A dense list (allotments 1, 2, 3, ...) or a sparse table, as a mapping."""
    what = "a time" if dimension == TIME else "a size"
    entries: list[tuple[int, ast.Expr, ast.Expr]] = []
    if isinstance(clause.value, ast.Items):
        entries = [(k, v, v) for k, v in enumerate(clause.value.items, start=1)]
    elif isinstance(clause.value, ast.Table):
        for key, value in clause.value.entries:
            k = whole(evaluate(key, scope), key.place, "the number of accelerators", 1, MAX_ALLOTMENT)
            entries.append((k, key, value))
    else:
        raise Problem(
            clause.value.place,
            f"'{clause.kind}' is a list [...] for 1, 2, 3 ... accelerators or a table {{...}}",
            f"write {clause.kind} [ ... ]",
        )
    if not entries:
        raise Problem(clause.value.place, f"'{clause.kind}' is empty", "give at least one entry: time [812us]")
    table: dict[int, int] = {}
    for k, key, value in entries:
        if k in table:
            raise Problem(key.place, f"{k} accelerators appear twice in this table")
        if accelerators is not None and k > accelerators:
            raise Problem(
                key.place,
                f"the table reaches {max(e[0] for e in entries)} accelerators, but the platform has {accelerators}",
                f"leave out the entries beyond {accelerators}",
            )
        table[k] = amount(evaluate(value, scope), value.place, what, dimension)
    return table


def _memory(clause: ast.Clause, scope: Lookup, times: Mapping[int, int], accelerators: int | None) -> Mapping[int, int]:
    if not isinstance(clause.value, ast.Table | ast.Items):
        size = _bytes(clause, scope)
        return dict.fromkeys(times, size)
    table = _by_allotment(clause, scope, SIZE, accelerators)
    if unknown := sorted(set(table) - set(times)):
        allowed = ", ".join(map(str, sorted(times)))
        raise Problem(clause.value.place, f"memory for {unknown[0]} accelerators, but times are for {allowed}")
    return table
