"""Benchmarks compare Edgewise with other engines and with the machine's limits. Each ratio comes from one interleaved run."""
