"""Choosing a plan: every way to run each node, its expected time, the choice, and comparisons of plans."""
