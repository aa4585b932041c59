"""Predicting what a candidate takes: bounds from the roofline, a model fitted to measurements, and how well it predicts."""
