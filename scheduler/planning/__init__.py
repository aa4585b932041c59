"""Choosing a plan: every way to run each node, what each should take, the choice, and comparisons of plans."""
