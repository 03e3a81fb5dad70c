"""The cost model: what an operator costs on k accelerators, from the platform's constants.

Plain arithmetic on plain numbers; only :mod:`passes.costs.reading` looks at the IR. The page of
formulas, sources and measured errors is ``docs/costs.md``.
"""
