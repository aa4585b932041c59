"""The kernels: one module for each family, which serves many operators."""
