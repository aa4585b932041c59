"""Other servers, as benchmarks start them; they run in the peers' environment, not in this one."""
