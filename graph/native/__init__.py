"""The lowering of a graph to native programs.

    place      where a value lies: a storage, and a view or an image in it
    epilogues  fused elementwise ops as steps that a kernel does before it stores
    tapes      elementwise ops of any type as expressions that a map computes
    channels   images that are cut, put together and shuffled without leaving their blocks
    lowering   what the rules build with: values, storages, packed constants, kernel calls
    convolutions, matrices, gathers, moves, …    the rules: which nodes a family takes, and the calls that they become
    rules      all of them in one table
    partition  which nodes run natively, in as few segments as their order allows
    segment    the calls of one segment placed in memory, compiled, bound and run

Inside a segment values are float32, float64, bools or integers, and lie as their producers like it: images in blocks of one
vector of channels, all else row-major or as a view of something row-major. Half precisions have no kernels that would round
as they must; strings and complex numbers have none at all. Reshapes, transposes and slices move nothing while strides can say it.
What comes in and goes out is row-major.
"""
