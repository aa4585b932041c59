"""The kernels of GPUs, by the operators that they compute.

A form is what a kernel's code depends on: a name, the same for the same code. A problem (`Problem`, `Map`, `Rows`, …) is sizes
and strides; it becomes a `Launch` of a form's kernel, which names the values that it reads and writes.

    product, problem              products and convolutions, also batched
    attention, attention_problem  attention
    elementwise, rearrange        maps and casts; copies between orders of dimensions
    rows, columns                 softmax, norms, reductions
    sliding, resize, gather       pools and depthwise convolutions; resizing; rows chosen by indices
    candidates                    the ways to compute a problem, where there are several
"""
