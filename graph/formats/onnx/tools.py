"""The tools that write operators of other domains into files, and what to pass to them so that they write ONNX's own."""

from __future__ import annotations

from collections.abc import Mapping

_ORT = "set SessionOptions.graph_optimization_level to ORT_ENABLE_BASIC where the model is saved"
_TORCH = "pass dynamo=True, or operator_export_type=OperatorExportTypes.ONNX"
_BY_DOMAIN: Mapping[str, tuple[str, str]] = {
    "com.microsoft": ("ONNX Runtime's optimizer, its transformers tool or Olive", f"{_ORT}, or leave that fusion out"),
    "com.microsoft.nchwc": ("ONNX Runtime's optimizer, for one kind of machine", _ORT),
    "com.ms.internal.nhwc": ("ONNX Runtime's optimizer, for one kind of machine", _ORT),
    "ai.onnx.contrib": ("onnxruntime-extensions", "export without pre- and post-processing, and do these in the program"),
    "ai.onnx.preview.training": ("a training exporter", "export the model for inference"),
    "org.pytorch.aten": ("torch.onnx.export with ATen fallback", _TORCH),
    "aten": ("torch.onnx.export with ATen fallback", _TORCH),
    "org.pytorch._caffe2": ("torch.onnx.export for Caffe2", _TORCH),
    "mmdeploy": ("MMDeploy", "deploy with a configuration that ends before the custom operators, such as one without NMS"),
    "TRT": ("an exporter for TensorRT", "export for ONNX Runtime, or without the NMS plugin"),
    "trt.plugins": ("an exporter for TensorRT", "export for ONNX Runtime, or without its plugins"),
    "qonnx.custom_op.general": ("QONNX or Brevitas", "export with export_onnx_qcdq, which writes QuantizeLinear"),
    "onnx.brevitas": ("Brevitas", "export with export_onnx_qcdq, which writes QuantizeLinear"),
}
_TENSORRT = "_TRT"  # how the names of its plugins end, which are written into ONNX's own domain too


def advice(op: str) -> str:
    """Return which tool wrote an operator that is not registered and what to pass to it, for an error; "" where that is unknown.

    op: with its domain in front, but for ONNX's own.
    """
    domain, _, name = op.rpartition(".")
    found = _BY_DOMAIN.get("TRT" if name.endswith(_TENSORRT) else domain)
    return "" if found is None else f"; it was written by {found[0]}: {found[1]}"
