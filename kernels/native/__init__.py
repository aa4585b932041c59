"""The native backend: kernels emitted as LLVM IR, specialised by shape and instruction set, compiled through llvmlite.

Folders, from the bottom up:
    memory    layouts of images and tensors, and aligned buffers
    target    instruction sets as data, and which one this machine gets (EDGEWISE_ISA narrows it)
    code      IR to machine code, in several processes; linked into memory, and cached on disk (EDGEWISE_CODE_CACHE)
    emit      a builder of IR that reads like the loops it makes; arithmetic, loop nests, epilogues, names of kernels
    families  the kernels: convolutions, products, attention, pools, norms, elementwise maps, and moves of data
    run       worker threads, barriers, and programs: the kernels of a segment composed into one function
"""
