"""One operator, or one family of alike operators, a file; `kernels.registry` discovers them."""
