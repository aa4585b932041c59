"""The choice of how each op runs on each device: plans, the strategy database, sessions. Knows nothing of HTTP."""
