"""Rewrite passes, one per file. Each takes a graph and its specs and returns an equivalent graph with less work."""
