"""The kernels of GPUs, by the operators that they compute."""
