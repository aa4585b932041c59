"""The files of this folder are complete, and every operator in them is counted."""

import pytest

import edgewise
from tests.classic.test_models import FOLDER, NAMES, arrays


def test_every_file_has_inputs_and_outputs_of_its_framework():
    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == NAMES
    assert all(arrays(name, "in") and arrays(name, "out") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_is_counted(name):
    shapes = {key: array.shape for key, array in arrays(name, "in").items()}
    assert not edgewise.profile(FOLDER / f"{name}.onnx", shapes=shapes).uncounted
