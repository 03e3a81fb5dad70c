"""One accepted and one refused input or solution for each rule of the problem classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from passes.scheduling.data import Cost, Dependence, Input, InvalidProblem, Operation, Solution
from passes.scheduling.lifetimes import Holding, held_sets, peak_of
from passes.scheduling.problem import MemoryProblem, Problem, StagedProblem

TABLE = {1: Cost(10, 4, 2, 1), 2: Cost(6, 2, 1, 1)}


def pair(**changes: object) -> MemoryProblem:
    """Two operations, the second reads the first, on two accelerators."""
    base = MemoryProblem(
        (Operation("a", TABLE), Operation("b", TABLE)),
        (Dependence(0, 1, 5),),
        (Input("x", 3, (0,)),),
        accelerators=2,
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def one_after_the_other(**changes: object) -> Solution:
    """Both operations on both accelerators."""
    return replace(Solution(12, (2, 2), ((0, 1), (0, 1)), (0, 6)), **changes)  # pyright: ignore[reportArgumentType]


def rules(problem: Problem, solution: Solution) -> set[str]:
    return {v.rule for v in problem.violations(solution)}


def refused(problem: Problem) -> set[str]:
    with pytest.raises(InvalidProblem) as caught:
        problem.check()
    return {v.rule for v in caught.value.violations}


def test_a_sane_problem_and_its_solution_pass() -> None:
    problem = pair()
    problem.check()
    problem.verify(one_after_the_other())


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"operations": (Operation("a", {}), Operation("b", TABLE))}, "table"),
        ({"operations": (Operation("a", {0: Cost(1)}), Operation("b", TABLE))}, "table"),
        ({"operations": (Operation("a", {1: Cost(-1)}), Operation("b", TABLE))}, "table"),
        ({"dependences": (Dependence(0, 2),)}, "dependence"),
        ({"dependences": (Dependence(0, 1, -5),)}, "dependence"),
        ({"inputs": (Input("x", 3, (7,)),)}, "dependence"),
        ({"dependences": (Dependence(0, 1), Dependence(1, 0))}, "acyclic"),
        ({"accelerators": 0}, "accelerators"),
        ({"operations": (Operation("a", {3: Cost(1)}), Operation("b", TABLE))}, "accelerators"),
        ({"memory": 3}, "memory"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, object], rule: str) -> None:
    assert rule in refused(pair(**changes))


def test_parameters_beyond_all_memory_say_how_much_would_do() -> None:
    heavy = {1: Cost(1, params=6)}
    problem = MemoryProblem(tuple(Operation(f"o{v}", heavy) for v in range(3)), accelerators=2, memory=8)
    with pytest.raises(InvalidProblem, match=r"need 18 bytes.* have 16: 2 bytes are missing, 9 bytes an accelerator"):
        problem.check()


def test_a_dependence_on_an_earlier_micro_batch_is_no_cycle() -> None:
    pair(dependences=(Dependence(0, 1), Dependence(1, 0, distance=1))).check()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"starts": (0,)}, "shape"),
        ({"allotments": (2, 3)}, "allotment"),
        ({"sets": ((0, 1), (0,))}, "sets"),
        ({"sets": ((0, 1), (0, 0))}, "sets"),
        ({"sets": ((0, 1), (1, 2))}, "sets"),
        ({"period": 0}, "period"),
        ({"starts": (1, 7)}, "origin"),
        ({"starts": (0, 5)}, "precedence"),
        ({"period": 11}, "exclusive"),
        ({"period": 5}, "exclusive"),
    ],
)
def test_bad_solutions_are_refused(changes: dict[str, object], rule: str) -> None:
    assert rule in rules(pair(), one_after_the_other(**changes))


def test_messages_name_both_operations_and_both_times() -> None:
    [precedence] = [v for v in pair().violations(one_after_the_other(starts=(0, 4))) if v.rule == "precedence"]
    assert "'b' starts at 4 ns" in precedence.message
    assert "'a', which is there at 6 ns" in precedence.message
    [overlap] = [v for v in pair().violations(one_after_the_other(period=11)) if v.rule == "exclusive"]
    assert "'b' in [6, 12)" in overlap.message
    assert "'a' in [0, 6) ns modulo 11" in overlap.message


def test_an_interval_may_wrap_around_the_period() -> None:
    pair(dependences=()).verify(Solution(12, (2, 2), ((0, 1), (0, 1)), (0, 18)))
    shifted = Solution(12, (1, 1), ((0,), (1,)), (0, 11))
    pair().verify(shifted)
    assert pair().in_flight(shifted) == 2


def test_operations_without_time_occupy_nothing() -> None:
    free = MemoryProblem((Operation("a", {1: Cost(0)}), Operation("b", {1: Cost(5)})), accelerators=1)
    free.verify(Solution(5, (1, 1), ((0,), (0,)), (2, 0)))


def test_a_value_of_an_earlier_micro_batch_is_ready_a_period_later() -> None:
    loop = MemoryProblem((Operation("a", {1: Cost(5)}),), (Dependence(0, 0, 1, distance=1),), accelerators=1)
    loop.verify(Solution(5, (1,), ((0,),), (0,)))
    assert rules(loop, Solution(4, (1,), ((0,),), (0,))) == {"precedence", "exclusive"}


# --- memory ------------------------------------------------------------------------------------


def test_peak_memory_by_hand() -> None:
    # a on accelerator 0 in [0, 10), b on accelerator 1 in [10, 20), period 10.
    solution = Solution(10, (1, 1), ((0,), (1,)), (0, 10))
    # 0: input 3 + output 2 + workspace 1 in [0, 10); the output goes to 1 when it is done.
    # 1: received 5 + output 2 + workspace 1 in [10, 20).
    assert pair().peak_memory(solution) == {0: (4, 6), 1: (4, 8)}


def test_a_value_read_in_place_lives_until_its_reader_is_done() -> None:
    # both on {0, 1}: outputs of a in [0, 12), of b in [6, 12); input 3 in [0, 6); workspace 1 always.
    assert pair().peak_memory(one_after_the_other()) == {0: (4, 5), 1: (4, 5)}


def test_memory_is_refused_with_the_missing_bytes() -> None:
    solution = Solution(10, (1, 1), ((0,), (1,)), (0, 10))
    pair(memory=12).verify(solution)
    [found] = pair(memory=11).violations(solution)
    assert (found.rule, found.missing) == ("memory", 1)
    assert "accelerator 1 needs 12 bytes (4 of parameters and 8 of live values)" in found.message


@pytest.mark.parametrize(
    ("holdings", "period", "peak"),
    [
        ([], 5, 0),
        ([Holding(0, 5, 3)], 5, 3),
        ([Holding(0, 0, 3)], 5, 0),
        ([Holding(0, 11, 3)], 5, 9),
        ([Holding(0, 10, 3)], 5, 6),
        ([Holding(3, 7, 1), Holding(2, 3, 1)], 5, 1),
        ([Holding(3, 7, 1), Holding(1, 3, 1)], 5, 2),
        ([Holding(0, 2, 4), Holding(2, 4, 5)], 10, 5),
    ],
)
def test_peak_of_holdings(holdings: list[Holding], period: int, peak: int) -> None:
    assert peak_of(holdings, period) == peak


def test_accelerators_of_equal_operations_are_grouped() -> None:
    assert held_sets([(0, 1, 2), (2,), (0, 1, 2), (2,)]) == [([0, 1], [0, 2]), ([2], [0, 2, 1, 3])]


# --- stages --------------------------------------------------------------------------------------


def staged(blocks: tuple[tuple[int, ...], ...], homes: tuple[int, ...], shared: dict[int, int]) -> StagedProblem:
    p = pair()
    return StagedProblem(p.operations, p.dependences, p.inputs, 4, 0, 0, blocks, homes, shared)


def test_operations_stay_on_what_they_were_granted() -> None:
    problem = staged(((0, 1), (2, 3)), (0, 1), {})
    problem.check()
    problem.verify(Solution(6, (2, 2), ((0, 1), (2, 3)), (0, 6)))
    assert rules(problem, Solution(6, (2, 2), ((0, 1), (1, 2)), (0, 6))) == {"blocks"}
    both = staged(((0, 1), (2, 3)), (0, 1), {1: 0})
    both.verify(Solution(12, (2, 2), ((0, 1), (1, 2)), (0, 6)))


@pytest.mark.parametrize(("blocks", "homes"), [(((0, 1), (1, 2)), (0, 1)), (((0,), ()), (0, 1)), (((0, 1),), (0, 1))])
def test_bad_blocks_are_refused(blocks: tuple[tuple[int, ...], ...], homes: tuple[int, ...]) -> None:
    assert refused(staged(blocks, homes, {})) == {"blocks"}


@dataclass(frozen=True)
class LinkedProblem(MemoryProblem):
    """Values that change accelerators take 5 ns more."""

    def transfer_time(self, s: Solution, d: Dependence) -> int:
        return 5 if s.sets[d.producer] != s.sets[d.consumer] else 0


def test_a_subclass_may_know_how_long_values_travel() -> None:
    operations = tuple(Operation(name, {1: Cost(10)}) for name in "ab")
    problem = LinkedProblem(operations, (Dependence(0, 1),), (), 2)
    problem.verify(Solution(20, (1, 1), ((0,), (0,)), (0, 10)))
    problem.verify(Solution(20, (1, 1), ((0,), (1,)), (0, 15)))
    with pytest.raises(InvalidProblem, match="'b' starts at 14 ns but reads 'a', which is there at 15 ns"):
        problem.verify(Solution(20, (1, 1), ((0,), (1,)), (0, 14)))
