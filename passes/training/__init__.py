"""Training: what lies beside parameters, and the backward operators of a graph."""
