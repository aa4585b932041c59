"""Count a model at several sizes of a dynamic dimension."""

from pathlib import Path

import edgewise

MODEL = Path(__file__).parents[1] / "app" / "demo" / "models" / "digits.onnx"

print(f"{'batch':>5} {'MACs':>12} {'peak bytes':>12} {'FLOPs/byte':>11}")
for batch in (1, 2, 4, 8, 16):
    profile = edgewise.profile(MODEL, dims={"batch": batch})
    print(f"{batch:>5} {profile.macs:>12,} {profile.peak_activation_bytes:>12,} {profile.intensity:>11.2f}")
