"""The files of this folder are complete, and every operator in them is counted."""

import pytest

import edgewise
from tests.classic.test_models import FOLDER, NAMES, arrays


def test_every_file_has_inputs_and_outputs_of_its_framework():
    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == NAMES
    assert all(arrays(name, "in") and arrays(name, "out") for name in NAMES)


@pytest.mark.parametrize(("name", "params"), [("logistic", 3 * 13 + 3), ("ridge", 13 + 1 + 2 * 13)])
def test_weights_that_files_have_as_attributes_are_parameters(name, params):
    assert edgewise.profile(FOLDER / f"{name}.onnx", shapes={"X": (2, 13)}).params == params


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_is_counted(name):
    shapes = {key: array.shape for key, array in arrays(name, "in").items()}
    assert not edgewise.profile(FOLDER / f"{name}.onnx", shapes=shapes).uncounted
