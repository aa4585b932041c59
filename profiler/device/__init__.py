"""Device profiles: what a machine is, and what it was measured to do."""
