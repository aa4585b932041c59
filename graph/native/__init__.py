"""The lowering of a graph to native programs.

    facts              what decides whether a node has a native form
    place              where a value lies: a storage, and a view or an image in it
    epilogues          fused elementwise ops as steps that a kernel does before it stores
    tapes              elementwise ops of any type as expressions that a map computes
    lowering           what a rule is given, put together of: dataflow, constants, calls and values
    epilogue_operands  values as operands of fused epilogues
    rule, work         what a rule is, and what it says a candidate does
    rules              one file for each family of kernels: which nodes it takes, and the calls that they become
    partition          which nodes run natively, in as few segments as their order allows
    segment            the calls of one segment placed in memory, compiled, bound and run

Inside a segment values are float32, float64, bools or integers, and lie as their producers like it: images in blocks of one
vector of channels, all else row-major or as a view of something row-major. Half precisions have no kernels that would round
as they must; strings and complex numbers have none at all. Reshapes, transposes and slices move nothing while strides can say it.
What comes in and goes out is row-major.
"""
