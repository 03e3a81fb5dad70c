"""The written spec of every level of the IR, and the verifier that holds a module to it.

A level is a list of named rules; a module at a level keeps the rules of that level and of those
below it. ``docs/ir.md`` shows an example of each level.
"""

from __future__ import annotations

from collections.abc import Mapping

from xdsl.dialects.builtin import ModuleOp

from dialects.communication_rules import COMMUNICATION_RULES
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.graph_rules import (
    BODY_RULES,
    MODEL_RULES,
    MOLDABLE_RULES,
    STAGED_RULES,
    STRUCTURE_RULES,
    leftovers,
)
from dialects.program_rules import PROGRAM_RULES
from dialects.rules import Rule, Subject
from dialects.schedule_rules import SCHEDULE_RULES
from dialects.step_rules import STEP_RULES
from dialects.structure import LEVELS
from dialects.transfer_rules import TRANSFER_RULES

RULES: Mapping[str, tuple[Rule, ...]] = {
    "model": (*STRUCTURE_RULES, *BODY_RULES, *MODEL_RULES, leftovers(0)),
    "moldable": (*MOLDABLE_RULES, leftovers(2)),
    "staged": (*STAGED_RULES, leftovers(3)),
    "scheduled": (*SCHEDULE_RULES, *TRANSFER_RULES, *STEP_RULES, leftovers(4)),
    "communicating": (*COMMUNICATION_RULES, leftovers(5)),
    "programs": PROGRAM_RULES,
}
"""What each level adds to the levels before it."""


def check_level(module: ModuleOp, level: str | None = None) -> list[Diagnostic]:
    """Everything in ``module`` that breaks a rule of ``level`` or of a level below it, in program order.

    Without ``level``, the level that the graph claims. A graph that claims a lower level than asked
    for breaks the rule ``level-reached``; it is then held to the rules of the level it claims.
    """
    if level is not None and level not in LEVELS:
        raise ValueError(f"unknown level '{level}' (levels are {', '.join(LEVELS)})")
    subject = Subject(module)
    # Later rules read the graph, so these come first and alone.
    for group in (STRUCTURE_RULES, BODY_RULES):
        broken = _run(group, subject)
        if broken:
            return broken
    claimed = LEVELS.index(subject.graph.level.data)
    asked = claimed if level is None else LEVELS.index(level)
    early: list[Diagnostic] = []
    if asked > claimed:
        message = f"the graph is at level '{LEVELS[claimed]}', not yet at '{LEVELS[asked]}'"
        early.append(at(subject.graph, message, rule="level-reached"))
        asked = claimed
    rules = [rule for name in LEVELS[: asked + 1] for rule in RULES[name] if _applies(rule, name, claimed, asked)]
    return early + _run(tuple(rules), subject)


def _applies(rule: Rule, level: str, claimed: int, asked: int) -> bool:
    if rule in STRUCTURE_RULES or rule in BODY_RULES:
        return False  # checked already
    if rule.name == "nothing-later":
        return LEVELS.index(level) == claimed == asked
    return True


def _run(rules: tuple[Rule, ...], subject: Subject) -> list[Diagnostic]:
    found = [
        (position, number, diagnostic)
        for number, rule in enumerate(rules)
        for position, diagnostic in rule.diagnostics(subject)
    ]
    return [diagnostic for _, _, diagnostic in sorted(found, key=lambda item: item[:2])]


def verify_level(module: ModuleOp, level: str | None = None) -> None:
    """Raise :class:`TaktError` with everything that :func:`check_level` finds, if it finds anything."""
    broken = check_level(module, level)
    if broken:
        raise TaktError(broken)
