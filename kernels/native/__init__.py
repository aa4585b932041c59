"""The native backend: kernels emitted as LLVM IR, specialised per shape and instruction set, compiled through llvmlite.

From the bottom up, a folder for each concern:
    target    instruction sets as data, and which one this machine gets (EDGEWISE_ISA narrows it)
    memory    how images and tensors lie in memory
    code      IR to object code, in several processes, kept on disk (EDGEWISE_CODE_CACHE)
    emit      parts of emitters: a builder of LLVM IR, vector functions, elementwise expressions, epilogues, loop nests
    families  the kernels: convolutions, products, attention, pools, resizings, norms and reductions, elementwise, rearrangements
    run       kernels composed into programs, and the threads that run these
"""
