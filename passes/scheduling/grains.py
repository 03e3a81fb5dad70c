"""Where a topological order may be cut: anywhere, or only between the blocks of the model.

Runtimes that cut at layers only need all operations of a block in one stage. Blocks that wait for each
other in turn can only stay together; what is left after merging those is a graph without cycles, and
every way to cut between blocks is a way to cut one of its topological orders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from passes.scheduling.data import Cost, Dependence, Operation
from passes.scheduling.orders import topological_orders
from passes.scheduling.problem import Problem

Granularity = Literal["operator", "block"]
"""What a stage is made of: single operations, or whole blocks of the model."""

Order = tuple[int, ...]


def cuttable_orders(problem: Problem, granularity: Granularity = "operator") -> list[tuple[Order, Order]]:
    """Topological orders worth trying, each with the positions, 0 and the end included, at which it may be cut."""
    if granularity == "operator" or not any(o.block for o in problem.operations):
        everywhere = tuple(range(len(problem.operations) + 1))
        return [(order, everywhere) for order in topological_orders(problem)]
    members, contracted = contract(problem)
    orders = [tuple(v for node in order for v in members[node]) for order in topological_orders(contracted)]
    return [(order, cut_positions(problem, order)) for order in orders]


def line_cuts(problem: Problem, line: Sequence[int], granularity: Granularity) -> list[Order]:
    """Sets of positions at which an order with groups gathered may be cut.

    In it the forward and backward operations of a block stand together, so that it can be cut between blocks. Cuts
    between any operations are better, but where a block is cut that computes values again a micro-batch passes more
    often from one part to the other.
    """
    blocks = cut_positions(problem, line) if any(o.block for o in problem.operations) else ()
    everywhere = tuple(range(len(line) + 1))
    if granularity == "block":
        return [blocks or everywhere]
    return [everywhere, *([blocks] if 2 < len(blocks) < len(everywhere) else [])]


def contract(problem: Problem) -> tuple[list[Order], Problem]:
    """The operations of each indivisible part, in topological order, and the graph of the parts.

    A part is an operation of no block, or one block, or several that wait for each other in turn. Its time
    is the sum of its operations at their fastest allotments: enough to order parts by critical path.
    """
    import networkx as nx

    keys = [o.block or v for v, o in enumerate(problem.operations)]
    graph: nx.DiGraph[int | str] = nx.DiGraph()
    graph.add_nodes_from(keys)
    pairs = dict.fromkeys((d.producer, d.consumer) for d in problem.dependences if d.distance == 0)
    graph.add_edges_from((keys[u], keys[v]) for u, v in pairs)
    part: dict[int | str, int] = {}
    for number, component in enumerate(nx.strongly_connected_components(graph)):
        part.update(dict.fromkeys(component, number))
    grouped: defaultdict[int, list[int]] = defaultdict(list)
    for v in problem.topological:
        grouped[part[keys[v]]].append(v)
    members = list(map(tuple, grouped.values()))
    number = {v: i for i, inside in enumerate(members) for v in inside}
    edges = dict.fromkeys((number[u], number[v]) for u, v in pairs if number[u] != number[v])
    times = [sum(min(c.time for c in problem.operations[v].table.values()) for v in inside) for inside in members]
    operations = tuple(Operation("", {1: Cost(time)}) for time in times)
    return members, Problem(operations, tuple(Dependence(u, v) for u, v in edges))


def cut_positions(problem: Problem, order: Sequence[int]) -> Order:
    """The positions of ``order``, 0 and the end included, at which no block is open."""
    last = {problem.operations[v].block: position for position, v in enumerate(order)}
    cuts, open_until = [0], -1
    for position, v in enumerate(order):
        block = problem.operations[v].block
        open_until = max(open_until, last[block] if block else position)
        if open_until <= position:
            cuts.append(position + 1)
    return tuple(cuts)
