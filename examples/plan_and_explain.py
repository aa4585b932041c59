"""Plan a model for this machine and say why each step runs as it does.

The first plan on a machine measures it for about eight seconds. EDGEWISE_DB names the database that keeps the result.
"""

from pathlib import Path

import edgewise

MODEL = Path(__file__).parents[1] / "app" / "demo" / "models" / "digits.onnx"

plan = edgewise.plan(MODEL, objective="latency", dims={"batch": 1})
print(f"plan {plan.id}: {plan.threads} threads")
for step in plan.steps:
    print(f"  {step.node} ({step.op}): {step.strategy}, {step.predicted_ns / 1e3:.1f} µs; {step.why}")
    for candidate in step.candidates[:3]:
        print(f"      {candidate.verdict}: {candidate.strategy} {candidate.reason}")

session = edgewise.Session(MODEL, plan=plan)
print(f"a session with the plan follows {session.plan_id}")
