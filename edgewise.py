"""Edgewise: profile an ONNX model op by op, plan how this device should run it, and run it with that plan."""

from __future__ import annotations
