"""Topological orders of a graph that a contiguous partition may follow."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx

from passes.scheduling.problem import Problem


def topological_orders(problem: Problem) -> list[tuple[int, ...]]:
    """Different orders, program order first; then depth-first, breadth-first, critical path first.

    A chain has one. Cutting a branching graph well needs branches kept together (depth-first) or
    advanced side by side (breadth-first), depending on where values are narrow.
    """
    program = problem.topological
    tails, levels = _tails(problem), _levels(problem)
    candidates = (
        program,
        _depth_first(problem),
        _by_key(problem, lambda v: (levels[v], v)),
        _by_key(problem, lambda v: (-tails[v], v)),
    )
    return list(dict.fromkeys(candidates))


def _by_key(problem: Problem, key: Callable[[int], tuple[int, int]]) -> tuple[int, ...]:
    """Of the ready operations always the one with the least key."""
    return tuple(nx.lexicographical_topological_sort(problem.graph, key))


def _depth_first(problem: Problem) -> tuple[int, ...]:
    """Go on with what the last operation made ready."""
    waiting = [len(p) for p in problem.predecessors]
    stack = [v for v, w in enumerate(waiting) if w == 0][::-1]
    order: list[int] = []
    while stack:
        u = stack.pop()
        order.append(u)
        for v in reversed(problem.successors[u]):
            waiting[v] -= 1
            if waiting[v] == 0:
                stack.append(v)
    return tuple(order)


def _shortest(problem: Problem, v: int) -> int:
    return min(c.time for c in problem.operations[v].table.values())


def _tails(problem: Problem) -> list[int]:
    """Longest path from the start of each operation to the end of the graph, at the fastest allotments."""
    tails = [0] * len(problem.operations)
    for v in reversed(problem.topological):
        tails[v] = _shortest(problem, v) + max((tails[w] for w in problem.successors[v]), default=0)
    return tails


def _levels(problem: Problem) -> list[int]:
    """Most edges on a path from a source to each operation."""
    levels = [0] * len(problem.operations)
    for v in problem.topological:
        levels[v] = max((levels[u] + 1 for u in problem.predecessors[v]), default=0)
    return levels
