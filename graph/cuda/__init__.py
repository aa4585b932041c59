"""The backend for NVIDIA GPUs: which nodes of a graph run there, how they become launches of `kernels.cuda`, and how these run.

engine       what the executor asks of a backend: refusals, candidates, segments
rules        by op: what is refused and why, and the launches of a node
lowering     where values lie on the GPU, packed weights, launches
layouts      values as matrices of rows or of pixels
finishing    what is fused behind a node, as kernels take it
ranking      the time that a product will take, estimated
segment      launches with memory, recorded as a graph and replayed
contest      the fastest way to compute each product, measured
"""
