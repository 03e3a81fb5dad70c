"""Choosing among candidates: interrupts, a schedule that is good enough, limits, blocks that are granted already."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import choices
from passes.scheduling import portfolio
from passes.scheduling.budget import Budget
from passes.scheduling.data import Cost, Dependence, InvalidProblem, Operation, Solution
from passes.scheduling.objective import Excess, Limits, figures_of
from passes.scheduling.portfolio import (
    AXES,
    FAMILIES,
    Candidate,
    Request,
    candidates,
    collect,
    front,
    gathered,
    inside,
    kept,
    plan_of,
    solve,
    whole,
)
from passes.scheduling.problem import MemoryProblem, StagedProblem

Strategy = Callable[..., st.SearchStrategy[MemoryProblem]]


def chain(*times: int, accelerators: int = 4, memory: int = 0) -> MemoryProblem:
    operations = tuple(
        Operation(f"o{v}", {1: Cost(t, 10, 5), 2: Cost(-(-t * 6 // 10), 5, 3)}) for v, t in enumerate(times)
    )
    links = tuple(Dependence(v - 1, v, 8) for v in range(1, len(times)))
    return MemoryProblem(operations, links, (), accelerators, 0, memory)


def test_the_lists_of_names_agree() -> None:
    assert ("auto", *FAMILIES) == choices.PLANS
    assert choices.AXES == AXES


def interrupted(after: int) -> Callable[..., Iterator[StagedProblem]]:
    """A family that is interrupted after some stagings."""

    def family(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
        for _ in range(after):
            yield whole(problem)
        raise KeyboardInterrupt

    return family


def never(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
    raise AssertionError("no family after an interrupt")


def test_an_interrupt_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FAMILIES["stages"][1]
    families = {"stages": FAMILIES["stages"], "shared": (interrupted(1), engine), "pushed": (never, engine)}
    monkeypatch.setattr(portfolio, "FAMILIES", families)
    budget = Budget()
    found = collect(chain(9, 9, 9), Request(), budget)
    assert [c.plan for c in found] == ["stages", "shared"]
    assert budget.stopped


def test_an_interrupt_of_the_second_engine_keeps_the_schedule_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupts(problem: StagedProblem, request: Request, budget: Budget) -> tuple[Solution, str]:
        raise KeyboardInterrupt

    for plan in ("laminar", "free"):
        monkeypatch.setitem(FAMILIES, plan, (FAMILIES[plan][0], interrupts))
    budget = Budget()
    found = gathered(inside(whole(chain(9, 9, 9)), Request(), budget), budget)
    assert [c.plan for c in found] == ["stages"]
    assert budget.stopped


def test_an_interrupt_before_anything_was_found_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portfolio, "FAMILIES", {"stages": (interrupted(0), FAMILIES["stages"][1])})
    with pytest.raises(KeyboardInterrupt):
        solve(chain(9, 9), Request(), Budget())


def test_an_interrupt_that_a_solver_took_stops_the_families_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(problem: MemoryProblem, request: Request, budget: Budget) -> Iterator[StagedProblem]:
        budget.stop()
        yield whole(problem)

    engine = FAMILIES["stages"][1]
    monkeypatch.setattr(portfolio, "FAMILIES", {"stages": (stops, engine), "shared": (never, engine)})
    budget = Budget(60.0)
    assert len(collect(chain(9, 9), Request(), budget)) == 1
    assert budget.stopped


def test_no_more_numbers_of_stages_once_the_budget_is_spent() -> None:
    request = Request("stages", front=True)
    assert len(collect(chain(9, 9, 9), request, Budget())) > 1
    spent = Budget(work=1.0)
    spent.spend(1.0)
    assert len(collect(chain(9, 9, 9), request, spent)) == 1, "the first is always looked for"


def test_no_family_is_asked_once_a_schedule_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FAMILIES["stages"][1]
    monkeypatch.setattr(portfolio, "FAMILIES", {"stages": FAMILIES["stages"], "shared": (never, engine)})
    assert solve(chain(9, 9, 9), Request(), Budget(), lambda c: True).plan == "stages"
    with pytest.raises(AssertionError, match="no family"):
        solve(chain(9, 9, 9), Request(), Budget(), lambda c: False)


def test_beyond_a_limit_nothing_is_good_enough() -> None:
    request = Request(limits=Limits(in_flight=1))
    assert solve(chain(9, 9, 9), request, Budget(), lambda c: True).figures.in_flight == 1


def test_the_limit_that_the_nearest_schedule_breaks_is_named() -> None:
    with pytest.raises(InvalidProblem) as e:
        solve(chain(90, 90), Request(limits=Limits(latency=100)), Budget())
    (excess,) = e.value.violations
    assert isinstance(excess, Excess)
    assert (excess.rule, excess.found, excess.allowed) == ("latency", 108, 100)


def test_less_memory_than_the_parameters_need() -> None:
    with pytest.raises(InvalidProblem, match="needs at least 8 bytes"):
        solve(chain(9, 9), Request(limits=Limits(memory=7)), Budget())


def test_a_limit_on_memory_above_what_there_is_changes_nothing() -> None:
    problem = chain(9, 9, memory=50)
    assert Limits(memory=60).bounded(problem) is problem
    assert Limits().bounded(problem) is problem
    assert Limits(memory=40).bounded(problem).memory == 40
    assert Limits(memory=40).bounded(chain(9)).memory == 40, "0 says that memory is not looked at"


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_fronts_hold_no_beaten_schedule(data: st.DataObject, tiny_problems: Strategy) -> None:
    problem = data.draw(tiny_problems())
    axes = tuple(data.draw(st.lists(st.sampled_from(AXES), min_size=2, unique=True)))
    found = collect(problem, Request(front=True), Budget())
    best = front(found, axes)

    def key(candidate: Candidate) -> tuple[int, ...]:
        return tuple(portfolio.axis(candidate.figures, a) for a in axes)

    keys = [key(c) for c in best]
    assert keys == sorted(set(keys))
    for candidate in found:
        assert any(all(a <= b for a, b in zip(k, key(candidate), strict=True)) for k in keys)
    for mine in keys:
        others = [k for k in keys if k != mine]
        assert not any(all(a <= b for a, b in zip(k, mine, strict=True)) for k in others)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_candidates_are_valid_and_have_the_figures_they_say(data: st.DataObject, tiny_problems: Strategy) -> None:
    problem = data.draw(tiny_problems(group=2))
    most = Limits(in_flight=data.draw(st.integers(1, 3)))
    for candidate in candidates(problem, Request(limits=most), Budget()):
        assert candidate.staged.violations(candidate.solution) == []
        assert candidate.figures == figures_of(problem, candidate.solution)
        again = list(inside(candidate.staged, Request(limits=most), Budget()))
        assert candidate.figures in [c.figures for c in again], "the granted blocks give the schedule again"


def test_blocks_tell_their_plan() -> None:
    problem = chain(9, 9, 9)
    assert plan_of(whole(problem)) == "stages"
    assert plan_of(problem.staged([(0,), (1,)], [0, 0, 1])) == "stages"
    assert plan_of(problem.staged([(0,), (1,)], [0, 0, 1], {1: 1})) == "shared"
    assert plan_of(problem.staged([(0,), (1,), (0,)], [0, 1, 2])) == "v"
    assert plan_of(problem.staged([(0,), (1,), (0,), (2,)], [0, 1, 2])) == "pushed"
    assert plan_of(problem.staged([(0,), (1,), (0,), (1,)], [0, 1, 2])) == "interleaved"
    assert plan_of(problem.staged([(0,), (1,), (1,), (0,)], [0, 1, 2])) == "v"
    assert plan_of(problem.staged([(0,), (1,), (0,), (1,)], [0, 1, 2], {1: 2})) == "pushed"


def test_none_within_the_limits_is_an_error() -> None:
    found = collect(chain(9, 9, 9), Request(plan="stages"), Budget())
    assert kept(found, Limits()) == found
    with pytest.raises(InvalidProblem, match="bytes cross"):
        kept([c for c in found if c.figures.crossing], Limits(crossing=0))
