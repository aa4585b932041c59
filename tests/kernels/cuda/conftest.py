"""A GPU for the tests that need one."""

import numpy as np
import pytest

from kernels.cuda.driver import Driver
from kernels.cuda.errors import NoDriverError
from kernels.cuda.program import Kernels


class Gpu:
    """A GPU that runs single launches to their end."""

    def __init__(self, context):
        self.context, self.kernels, self.stream = context, Kernels(context), context.stream()

    def upload(self, array):
        memory = self.context.allocate(max(4, array.nbytes))
        memory.write(np.ascontiguousarray(array))
        return memory

    def run(self, launch, memory):
        self.kernels.launch(launch, memory, self.stream)
        self.stream.synchronize()


@pytest.fixture(scope="session")
def gpu():
    try:
        device = Driver().device()
    except NoDriverError as error:
        pytest.skip(str(error))
    with device.open() as context:
        yield Gpu(context)
