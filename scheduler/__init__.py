"""Which way to run each op on each device: plans, the strategy database, sessions. Knows nothing of HTTP."""
