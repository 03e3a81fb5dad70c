"""Helpers of the front-end tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from xdsl.dialects.builtin import ModuleOp

from dialects.diagnostics import Diagnostic, TaktError
from dialects.operators import OperatorOp
from dialects.structure import GraphOp, find_graph
from frontend import Source, load


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., GraphOp]:
    """Load a text and return its verified graph."""

    def load_graph(text: str, overrides: Mapping[str, str] | None = None) -> GraphOp:
        module: ModuleOp = load(Source("f.takt", text), overrides=overrides or {})
        module.verify()
        graph = find_graph(module)
        assert graph is not None
        return graph

    return load_graph


@pytest.fixture(scope="session")
def operators_of(graph_of: Callable[..., GraphOp]) -> Callable[..., dict[str, OperatorOp]]:
    """Load a text and return its operators by the name of their first result."""

    def load_operators(text: str, overrides: Mapping[str, str] | None = None) -> dict[str, OperatorOp]:
        found: dict[str, OperatorOp] = {}
        for op in graph_of(text, overrides).operators():
            name = op.results[0].name_hint
            assert name is not None
            assert name not in found
            found[name] = op
        return found

    return load_operators


@pytest.fixture(scope="session")
def errors_of() -> Callable[..., tuple[Diagnostic, ...]]:
    """Load a text that is wrong and return its diagnostics."""

    def load_errors(text: str, overrides: Mapping[str, str] | None = None) -> tuple[Diagnostic, ...]:
        with pytest.raises(TaktError) as failure:
            load(Source("f.takt", text), overrides=overrides or {})
        return failure.value.diagnostics

    return load_errors
