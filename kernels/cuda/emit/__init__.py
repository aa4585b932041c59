"""Writing GPU kernels: the builder of `kernels.native.emit` with the GPU's own instructions, and where a kernel's operands lie.

Modules, from the bottom up:
    builder      modules, kernels, and instructions of the GPU that LLVM IR has no name for
    descriptor   what a kernel is told of one problem when it is launched: sizes, strides and addresses
    kernel       a kernel as an object, how threads share its work and combine numbers
    reduce       reductions: how elements become one
    source       the address of element (row, depth) of a factor: of a matrix, or of a convolution's windows in an image
    unit         products of tiles in shared memory, by tensor cores or by fp32 multiply-adds
    epilogue     runs of elements on their way to and from memory; bias and expression on results in registers
"""
