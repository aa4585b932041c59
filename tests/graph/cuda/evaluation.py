"""Expressions evaluated by numpy, in the operations that networks use."""

import operator
from math import erf

import numpy as np

_ERF = np.frompyfunc(erf, 1, 1)


def _erf(x):
    return np.asarray(_ERF(x), np.float32)


def _gelu(x):
    return x * 0.5 * (1 + _erf(x / np.sqrt(2)))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


_FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "clip": np.clip,
    "leaky_relu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "erf": _erf,
    "tanh": np.tanh,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "square": np.square,
    "neg": np.negative,
    "abs": np.abs,
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "where": np.where,
    **{name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
}


def evaluate(expression, operands):
    """Return what an expression is of arrays."""
    values = list(operands)
    for step in expression.steps:
        args = [values[n] for n in step.args]
        if step.op == "constant":
            values.append(np.full((), step.parameters[0], step.dtype or np.float32))
        elif step.op == "cast":
            values.append((args[0] != 0) if step.dtype == np.bool_ else args[0].astype(step.dtype or np.float32))
        else:
            values.append(_FUNCTIONS[step.op](*args, *step.parameters))
    return np.broadcast_to(values[-1], np.broadcast_shapes(*(np.shape(value) for value in values)))
