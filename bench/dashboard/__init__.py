"""The dashboard over a service that has something to show: for tests, benches and pictures."""
