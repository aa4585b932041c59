"""The model and the images of the demo that comes with the service."""

from app.settings import DEMO_MODELS

DEMO = DEMO_MODELS.parent
IMAGES = DEMO / "images"
MODEL = str(DEMO_MODELS / "digits.onnx")
SEVEN = (IMAGES / "7.json").read_bytes()
