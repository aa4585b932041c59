"""Ask a running service about an image: python examples/call_http.py [http://127.0.0.1:8000]. `make serve` starts one.

EDGEWISE_KEY is sent as the API key, where the service wants one.
"""

import json
import os
import sys
from pathlib import Path

import httpx

IMAGE = Path(__file__).parents[1] / "app" / "demo" / "images" / "7.json"

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
headers = {"X-API-Key": os.environ["EDGEWISE_KEY"]} if "EDGEWISE_KEY" in os.environ else {}
with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
    print("ready:", client.get("/v2/health/ready").is_success)
    reply = client.post("/v2/models/digits/infer", json=json.loads(IMAGE.read_text())).raise_for_status().json()
    outputs = {output["name"]: output["data"] for output in reply["outputs"]}
    print(f"the digit is {outputs['digit'][0]}, computed by plan {reply['parameters']['plan_id']}")
    models = client.get("/v1/models").raise_for_status().json()
    print("served models:", json.dumps(models)[:200])
