"""Execution of graphs: preparation for one set of input shapes, and the executor."""
