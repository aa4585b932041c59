"""Make epilogues from chains of operations."""

from __future__ import annotations

from typing import Any

from kernels.expression import FLOAT, Draft
from kernels.native.emit.epilogue import Epilogue


def chain(*steps: str | tuple[Any, ...], bias: bool = False) -> Epilogue[Any]:
    """Return an epilogue that applies one operation after another to the result. Its operands are float32.

    A step is a name, a name with parameters, such as ("clip", 0.0, 6.0), or a name with the layout of an operand: ("sub", view)
    subtracts the operand from the result, (view, "sub") subtracts the result from the operand.
    """
    draft, layouts = Draft(), dict[str, Any]()
    made = draft.operand("", FLOAT)
    for step in steps:
        name, *rest = (step,) if isinstance(step, str) else step
        if not isinstance(name, str) or (rest and not isinstance(rest[0], float)):
            swapped = not isinstance(name, str)
            layout, op = (name, rest[0]) if swapped else (rest[0], name)
            operand = draft.operand(f"r{len(layouts)}", FLOAT)
            layouts[f"r{len(layouts)}"] = layout
            made = draft(op, operand, made) if swapped else draft(op, made, operand)
        else:
            made = draft(name, made, parameters=tuple(rest))
    names, expression = draft.finish(made, ("",))
    return Epilogue(bias, expression, tuple(layouts[name] for name in names[1:]))
