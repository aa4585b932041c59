"""Rewrite passes, one a file: each takes a graph and its specs and returns an equivalent graph with less to do."""
