"""Run a model from Python, and measure where the time of a run goes."""

import json
from pathlib import Path

import numpy as np

import edgewise

DEMO = Path(__file__).parents[1] / "app" / "demo"

tensor = json.loads((DEMO / "images" / "7.json").read_text())["inputs"][0]
image = np.array(tensor["data"], np.float32).reshape(tensor["shape"])

session = edgewise.Session(DEMO / "models" / "digits.onnx", threads=1)
outputs = session.run({"image": image})
print(f"the digit is {outputs['digit'][0]}, with probability {outputs['probabilities'].max():.3f}")

trace = session.trace({"image": image}, runs=20)
print(f"a run takes {trace.wall.p50_ns / 1e3:.0f} µs (median of 20)")
