"""The native backend: which nodes of a graph run natively, and the programs that they become.

    expressions        elementwise ops, alone or fused behind a node, as expressions that kernels compute
    place              where a value lies: a storage, and a view or an image in it
    facts, work        what decides whether a node has a native form, and what a candidate computes and moves
    lowering           what a rule is given; it composes dataflow, constants, calls and values
    epilogue_operands  values as operands of fused epilogues
    rule, rules        what a rule is, and one file for each family of kernels: the nodes it takes, the calls they become
    partition          the nodes that run natively, in as few segments as their order allows
    segment            the calls of one segment placed in memory (arena), with barriers, compiled, bound and run
    engine             the backend as executors and planners use it

Inside a segment, values are float32, float64, bools or integers. Images lie in blocks of one vector of channels, all else lies
row-major or as a view of something row-major; reshapes, transposes and slices copy nothing where strides can express them. Inputs
and outputs of a segment are row-major. There are no native kernels for half precisions, strings and complex numbers.
"""
