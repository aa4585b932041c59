"""Benchmarks: ratios against other engines and against the machine's limits, each from one interleaved run."""
