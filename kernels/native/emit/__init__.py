"""Emitting LLVM IR: a typed builder, elementary functions, expressions, loop nests, and what a kernel is."""
