"""Counting the cost of a model before it runs: FLOPs, bytes, parameters, memory."""
