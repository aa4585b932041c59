"""What the service observes of itself: statistics, metrics, spans, traces, drift of plans, and FLOPs served."""
