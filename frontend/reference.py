"""The operator table of ``docs/language.md``, written from the operators themselves.

``python -m frontend.reference`` prints it; a test keeps the page and the operators in step.
"""

from __future__ import annotations

from typing import Any

from dialects.operators import OPERATORS, OperatorOp


def operator_table() -> str:
    """All operators in Markdown: how each is written, and the first line of its documentation."""
    rows = ["| operator | what it computes |", "|---|---|"]
    rows += [f"| `{_form(operator)}` | {_summary(operator)} |" for operator in OPERATORS]
    return "\n".join(rows) + "\n"


def _form(operator: type[OperatorOp]) -> str:
    least, most = operator.ARITY
    operands = ["abcdefgh"[i] for i in range(least)] if least != 1 else ["x"]
    if most is None:
        operands.append("...")
    arguments: list[str] = []
    for name, (_, default, required) in operator.signature().items():
        arguments.append(name if required else f"{name}?" if default is None else f"{name} = {_value(default)}")
    return f"{operator.kind()}({', '.join(operands)}{'; ' if arguments else ''}{', '.join(arguments)})"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _summary(operator: type[OperatorOp]) -> str:
    first = (operator.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(first.split()).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    print(operator_table(), end="")
