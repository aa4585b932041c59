"""The lowering of a graph to native programs.

    place      where a value lies: a storage, and a view or an image in it
    epilogues  fused elementwise ops as steps that a kernel does before it stores
    lowering   what the rules build with: values, storages, packed constants, kernel calls
    convolutions, matrices, pools, maps, …    the rules: which nodes a family takes, and the calls that they become
    rules      all of them in one table
    partition  which nodes run natively, in as few segments as their order allows
    segment    the calls of one segment placed in memory, compiled, bound and run

Inside a segment every value is fp32 and lies as its producer likes it: images in blocks of one vector of channels, all else
row-major or as a view of something row-major. Reshapes, transposes and slices move nothing while strides can say it.
What comes in and goes out is row-major.
"""
