"""NVIDIA GPUs, with nothing but their driver: kernels are LLVM IR, compiled to PTX by LLVM and to machine code by the driver.

Modules, from the bottom up:
    errors    the driver's result codes as typed errors
    library   libcuda through ctypes, every call checked
    driver    contexts, memory, streams, events, modules, launches and graphs of launches
    ptx       IR to PTX, kept in the code cache on disk
    emit      writing kernels: instructions of the GPU, where factors lie, products of tiles, epilogues
    program   kernels loaded onto a GPU, and many launches replayed as one
    families  the kernels, by what they compute
    probe     what a GPU can do: measured peaks, bandwidths, and the costs of barriers and launches
"""
