"""Predicting the time of a candidate: estimates from the roofline, a model fitted to measurements, and its accuracy."""
