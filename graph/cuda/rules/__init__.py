"""By op: what the GPU refuses and why, and the launches of a node."""
