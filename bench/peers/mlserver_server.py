"""A runtime for `mlserver start` that runs a model of one input and one output by ONNX Runtime. `parameters.uri` is the model.

Rows travel as base64 strings: MLServer reads no binary tensors over HTTP, and with lists of numbers the time would go into JSON.
"""

import base64
import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceResponse


class OnnxRuntime(MLModel):
    """The runtime. MLServer itself forms the batches (max_batch_size, max_batch_time)."""

    async def load(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = int(os.environ["BENCH_THREADS"]), 1
        self.session = ort.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        port = self.session.get_inputs()[0]
        self.input, self.row, self.output = port.name, port.shape[1:], self.session.get_outputs()[0].name
        return True

    async def predict(self, payload):
        rows = [np.frombuffer(base64.b64decode(text), np.float32) for text in StringCodec.decode_input(payload.inputs[0])]
        y = self.session.run(None, {self.input: np.stack(rows).reshape(-1, *self.row)})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(self.output, y)])
