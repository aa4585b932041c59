"""Device profiles: the description of a machine, and its measured rates."""
