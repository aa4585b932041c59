"""Operators and the backends that compute them. Knows nothing of graphs, devices or HTTP."""
