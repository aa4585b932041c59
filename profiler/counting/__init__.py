"""Counting what a model costs before anything runs: FLOPs, bytes, parameters, memory."""
