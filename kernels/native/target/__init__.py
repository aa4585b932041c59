"""The machine that code is emitted for: instruction sets as data, and this machine's processor as LLVM describes it."""
