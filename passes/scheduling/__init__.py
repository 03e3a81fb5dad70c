"""Scheduling library: problems, lower bounds and solvers on plain data, without any IR.

A client builds a problem, calls its ``check()``, a solver, and ``verify()`` on what the solver gave.
"""
