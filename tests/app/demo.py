"""The demo that the service is bundled with: its model, and images to ask it about."""

from app.settings import DEMO_MODELS

DEMO = DEMO_MODELS.parent
IMAGES = DEMO / "images"
MODEL = str(DEMO_MODELS / "digits.onnx")
SEVEN = (IMAGES / "7.json").read_bytes()
