"""ONNX files, read as if every byte were an attack."""
