"""The takt IR: one dialect, its operators, and the written spec of every level.

Nothing in this package imports another package of takt.
"""
