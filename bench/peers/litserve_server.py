"""`litserve_server.py MODEL PORT THREADS` serves a model by LitServe and ONNX Runtime. Tensors travel as base64 in JSON."""

import base64
import sys

import litserve as ls
import numpy as np
import onnxruntime as ort


class Api(ls.LitAPI):
    """A model with one input and one output, batched along axis 0. The model's batch dimension has to be dynamic."""

    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = int(sys.argv[3]), 1
        self.session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        port = self.session.get_inputs()[0]
        self.name, self.shape = port.name, port.shape[1:]

    def decode_request(self, request):
        return np.frombuffer(base64.b64decode(request["data"]), np.float32).reshape(1, *self.shape)

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, x):
        return self.session.run(None, {self.name: x})[0]

    def unbatch(self, output):
        return [output[row : row + 1] for row in range(len(output))]

    def encode_response(self, output):
        return {"data": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    api = Api(max_batch_size=8, batch_timeout=0.001)
    ls.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False
    )
