"""Count what a model costs, operator by operator. Nothing is run or measured."""

from pathlib import Path

import edgewise

MODEL = Path(__file__).parents[1] / "app" / "demo" / "models" / "digits.onnx"

profile = edgewise.profile(MODEL, dims={"batch": 1})
print(f"{profile.macs:,} MACs, {profile.flops:,} FLOPs, {profile.params:,} parameters")
print(
    f"{profile.peak_activation_bytes:,} bytes of activations at the peak, {profile.coverage_percent:.0f} % of the nodes counted"
)
for op in sorted(profile.ops, key=lambda op: -op.flops)[:3]:
    print(f"  {op.name}: {op.op}, {op.macs:,} MACs, {op.read_bytes + op.write_bytes:,} bytes moved")
