"""taktc: every plan by name, with the solvers it has and those it has not, copies, and the trade-off of one plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passes.choices import PLANS, SOLVERS
from passes.scheduling import portfolio

Tool = Callable[..., Any]
NAMED = PLANS[1:]


@pytest.fixture
def dag(examples: Path) -> tuple[str, ...]:
    board = str(examples / "tiny_board.takt")
    return str(examples / "research_dag.takt"), "--platform", board, "--quiet", "--effort", "0.1"


@pytest.mark.parametrize("plan", NAMED)
def test_every_plan_can_be_named(taktc: Tool, takt_opt: Tool, dag: tuple[str, ...], plan: str) -> None:
    compiled = taktc(*dag, "--plan", plan)
    assert compiled.code == 0, compiled.err
    proven = takt_opt("-p", "verify-schedule{certificate=true}", stdin=compiled.out.encode())
    assert proven.code == 0, proven.err
    document = taktc("-", "--quiet", "--emit", "json", stdin=compiled.out.encode()).out
    assert json.loads(document)["schedule"]["plan"] == plan
    assert f' plan "{plan}"' in compiled.out or f"plan {plan}" in compiled.out


@pytest.mark.parametrize("plan", NAMED)
def test_a_solver_that_a_plan_has_not_is_refused(taktc: Tool, dag: tuple[str, ...], plan: str) -> None:
    has = portfolio.SOLVERS[plan]
    other = next(solver for solver in SOLVERS if solver not in has)
    refused = taktc(*dag, "--plan", plan, "--solver", other)
    assert refused.code == 1
    assert f"plan '{plan}' has no solver '{other}', it has: {', '.join(has)}" in refused.err
    assert taktc(*dag, "--plan", plan, "--solver", has[0]).code == 0


@pytest.mark.parametrize("plan", ["free", "list", "laminar", "replicated"])
def test_the_trade_off_of_one_plan(taktc: Tool, dag: tuple[str, ...], plan: str) -> None:
    result = taktc(*dag, "--plan", plan, "--pareto", "period,in-flight", "--emit", "json")
    assert result.code == 0, result.err
    front = json.loads(result.out)
    assert {point["plan"] for point in front["points"]} == {plan}
    assert all(front["bound"] <= point["period"] for point in front["points"])


def test_auto_takes_copies_where_they_are_allowed(taktc: Tool, takt_opt: Tool, dag: tuple[str, ...]) -> None:
    """Without copies no period is below 679 us, which bounds for schedules with copies must not claim."""
    compiled = taktc(*dag, "--plan", "auto", "--replicate", "4")
    assert compiled.code == 0, compiled.err
    schedule = json.loads(taktc("-", "--quiet", "--emit", "json", stdin=compiled.out.encode()).out)["schedule"]
    assert schedule["plan"] == "replicated"
    assert schedule["period"] < 679_000
    assert takt_opt("-p", "verify-schedule{certificate=true}", stdin=compiled.out.encode()).code == 0
    summary = taktc("-", "--emit", "summary", stdin=compiled.out.encode()).out
    assert "650.5 us" not in summary, "that bound holds without copies only"
