"""The measuring agent: works on the jobs of its machine for a service elsewhere."""
