"""The native backend: kernels emitted as LLVM IR, specialised per shape and instruction set, compiled through llvmlite."""
