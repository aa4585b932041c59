"""The machine that code is emitted for: instruction sets as data, and what LLVM says of this host."""
