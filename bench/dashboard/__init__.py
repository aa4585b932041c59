"""A dashboard with data on every page, for tests, benchmarks and screenshots."""
