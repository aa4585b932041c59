"""Models as data: IR, ONNX reader, shape propagation, rewrite passes, memory plan, executor. Knows nothing of devices."""
