"""Measured runs: the time of every step, and its distance from the roofline."""
