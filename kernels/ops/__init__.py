"""Operators, one per file or one family of alike operators; `kernels.registry` discovers them."""
