"""Measured runs: where the time goes step by step, and how far each step is from the roof."""
