"""Observability: statistics, metrics, spans, traces, health, drift of plans, and FLOPs served."""
