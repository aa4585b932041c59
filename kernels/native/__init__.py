"""The native backend: kernels emitted as LLVM IR, specialised per shape and instruction set, compiled through llvmlite.

From the bottom up:
    isa        instruction sets as data; which one this machine gets (EDGEWISE_ISA narrows it)
    types, builder    LLVM IR as text, built by code that reads like the loops it makes
    compile, library, cache, farm    text to object code, to memory, to disk (EDGEWISE_CODE_CACHE), in several processes
    math, functions, remez    activations, powers, sines…, emitted inline; where their coefficients come from
    runtime, pool     native worker threads, barrier, shared chunks
    layout, view, geometry    how images and tensors lie in memory; how work is cut up
    kernel     what every kernel looks like from outside
    nest, walk, expression, transpose    loops over strided tensors, elementwise operations on a tape, tiles turned in registers
    product    register tiles of products whose factors are both computed at run time
    conv, winograd, depthwise, pooling, maps, rows, matmul, attention, gather, channels    the kernels
    rearrange    what takes several maps: layouts of images, padding
    program    kernels composed into the one function that a segment of a model runs as
"""
