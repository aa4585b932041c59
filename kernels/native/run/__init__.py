"""Running programs: the native thread pool, its run-time, and kernels composed into one function."""
