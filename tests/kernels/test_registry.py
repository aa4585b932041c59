from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from kernels import ops
from kernels.cost import Cost
from kernels.errors import AttributeValueError, DTypeError, EdgewiseError, ShapeError, UnknownOpError, UnsupportedError
from kernels.registry import Kernel, Op, _discovered, evaluate, find, is_registered, operators
from kernels.spec import Spec


def _identity(x: Spec, *, factor: int, shift: float = 0.0) -> Spec:
    return Spec(x.shape, x.dtype)


def _copy(out, x, **attrs):
    np.copyto(out[0], x)


def _op(name="Probe", kernel=Kernel("copy", _copy)):  # noqa: B008  frozen
    return Op(name, _identity, lambda out, x, **attrs: Cost(), (kernel,))


def test_operators_refuse_two_of_one_name(monkeypatch):
    """A second file that claims Add raises and names itself."""
    monkeypatch.setattr("kernels.registry.modules", lambda package: ["binary", "zz_twin"])
    twin = ModuleType("kernels.ops.zz_twin")
    vars(twin)["ADD"] = _op("Add")
    monkeypatch.setitem(sys.modules, "kernels.ops.zz_twin", twin)
    with pytest.raises(EdgewiseError, match=r"Add: registered twice.*zz_twin\.py"):
        _discovered.__wrapped__()


def test_find_imports_the_file_of_the_op_alone():
    code = "import sys; from kernels.registry import find; find('Softmax'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "kernels.ops.softmax" in loaded
    assert "kernels.ops.conv" not in loaded


def test_find_returns_the_ops_of_the_registry():
    assert all(find(name) is op for name, op in operators().items())


def test_is_registered():
    assert is_registered("Softmax")
    assert not is_registered("Sofmax")


def test_find_unknown_op_names_the_closest():
    with pytest.raises(UnknownOpError, match=r"Sofmax: no such operator.*Softmax"):
        find("Sofmax")


def test_every_module_of_the_folder_registers_an_op():
    files = {path.stem for path in Path(ops.__path__[0]).glob("*.py") if not path.stem.startswith("_")}
    assert len(files) > 50
    operators()
    for name in files:
        module = vars(ops)[name]
        assert hasattr(module, "OPS") or any(isinstance(value, Op) for value in vars(module).values()), name


def test_bind_fills_defaults():
    assert _op().bind({"factor": 3}) == {"factor": 3, "shift": 0.0}


def test_bind_refuses_unknown_attribute():
    with pytest.raises(UnsupportedError, match="'sharpness' is unknown"):
        _op().bind({"factor": 1, "sharpness": 2})


def test_bind_refuses_missing_attribute():
    with pytest.raises(EdgewiseError, match="'factor' is missing"):
        _op().bind({})


def test_bind_refuses_attribute_of_another_type():
    with pytest.raises(AttributeValueError, match="Probe: attribute 'factor' is 'three', need int"):
        _op().bind({"factor": "three"})


def test_bind_refuses_list_with_an_element_of_another_type():
    with pytest.raises(AttributeValueError, match=r"Transpose: attribute 'perm' is '\(0, 1.5\)', need Sequence\[int\]"):
        find("Transpose").bind({"perm": (0, 1.5)})


@pytest.mark.parametrize("op", operators().values(), ids=lambda op: op.name)
def test_attribute_types_are_ones_that_bind_can_check(op):
    """Defaults hold too: given as a value they are taken."""
    defaults = {name: value for name, value in op.defaults.items() if value not in (inspect.Parameter.empty, None)}
    needed = {name for name, value in op.defaults.items() if value is inspect.Parameter.empty}
    if not needed:
        op.bind({name: type(value)(value) for name, value in defaults.items()})
    for name in op.defaults:
        with pytest.raises(AttributeValueError):
            op.bind({name: object()})


def test_infer_refuses_too_many_inputs():
    with pytest.raises(ShapeError, match="got 2 inputs"):
        _op().infer_specs([Spec((1,), np.dtype(np.float32))] * 2, {"factor": 1})


def test_infer_refuses_absent_required_input():
    with pytest.raises(ShapeError, match=r"Reshape: input 1 \(shape\) is absent"):
        find("Reshape").infer_specs([Spec((1,), np.dtype(np.float32)), None], {"allowzero": 0})


def test_choose_quotes_every_refusal():
    op = _op(kernel=Kernel("tall", _copy, refuses=lambda x, **attrs: "x is too short"))
    with pytest.raises(UnsupportedError, match="tall: x is too short"):
        op.choose([Spec((1,), np.dtype(np.float32))], {"factor": 1})


def test_choose_unknown_algorithm_lists_the_known():
    with pytest.raises(UnsupportedError, match="it has copy"):
        _op().choose([Spec((1,), np.dtype(np.float32))], {"factor": 1}, "winograd")


def test_evaluate_hands_workspace_over():
    seen = {}

    def run(out, x, *, workspace, **attrs):
        seen["bytes"] = workspace.nbytes
        np.copyto(out[0], x)

    op = _op(kernel=Kernel("copy", run, workspace_bytes=lambda x, **attrs: 3 * x.nbytes))
    (y,) = evaluate(op, [np.ones(4, np.float32)], {"factor": 1})
    assert seen == {"bytes": 48}
    np.testing.assert_array_equal(y, 1)


def test_evaluate_refuses_wrong_dtype():
    with pytest.raises(DTypeError, match="int32"):
        evaluate(find("Sqrt"), [np.ones(2, np.int32)], {})
