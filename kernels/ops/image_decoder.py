"""ImageDecoder: the pixels of an image file that a model is given as bytes. Pillow decodes; it comes with the extra `images`.

Only the formats that ONNX lists are opened. The size that the file declares is checked before any pixel is decoded.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from kernels.cost import Cost, moves
from kernels.errors import AttributeValueError, DTypeError, InvalidError, ShapeError, UnsupportedError
from kernels.operands import one_of
from kernels.registry import Case, Kernel, Op, require_dtype
from kernels.scratch import FIXED_BYTES
from kernels.spec import Array, Spec

MOST_PIXELS = 1 << 26  # 64 million, more than any camera's but the largest; 192 MiB in RGB
MOST_RATIO = 1 << 12  # pixels for each byte of a file: one color compresses to less, photographs to a thousandth of it

_FORMATS = ("BMP", "JPEG", "JPEG2000", "TIFF", "PNG", "WEBP", "PPM")
_CHANNELS = {"RGB": 3, "BGR": 3, "Grayscale": 1}
_U8 = np.dtype(np.uint8)


def infer(encoded: Spec, *, pixel_format: str = "RGB") -> Spec:
    """(height, width, channels) in uint8; (0, 0, channels) for bytes of no known format. encoded: the bytes of a file."""
    one_of("ImageDecoder: attribute pixel_format", pixel_format, _CHANNELS)
    require_dtype("ImageDecoder: encoded_stream", encoded, frozenset({_U8}))
    if encoded.rank != 1:
        raise ShapeError(f"ImageDecoder: encoded_stream is {encoded}, need the bytes of one file")
    image = _opened(encoded.known("ImageDecoder: encoded_stream"))
    width, height = (0, 0) if image is None else image.size
    return Spec((height, width, _CHANNELS[pixel_format]), _U8)


def _opened(encoded: Array) -> Any:
    """Return an image of which only the header is read; None where it is of no known format.

    Raises: UnsupportedError without Pillow; InvalidError where the image has more pixels than the limits allow.
    """
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  an optional package
    except ImportError:
        raise UnsupportedError(
            "ImageDecoder: Pillow is not installed, 1 package is missing: pip install edgewise[images]"
        ) from None
    try:
        image = Image.open(io.BytesIO(encoded.tobytes()), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit, beyond this one
        raise InvalidError(f"ImageDecoder: {error}, the limit is {MOST_PIXELS} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None
    width, height = image.size
    if width * height > min(MOST_PIXELS, MOST_RATIO * len(encoded)):
        limits = f"the limits are {MOST_PIXELS} and {MOST_RATIO} for each byte"
        raise InvalidError(f"ImageDecoder: {width}×{height} pixels in {len(encoded)} bytes, {limits}")
    return image


def scratch_bytes(out: tuple[Spec, ...], encoded: Spec, **attrs: Any) -> int:
    """A copy of the file, and the pixels as Pillow holds them, decoded and converted: 4 bytes each."""
    pixels = out[0].elements // out[0].shape[-1]
    return FIXED_BYTES + (8 << 20) + 2 * encoded.nbytes + 12 * pixels


def run(out: tuple[Array, ...], encoded: Array, *, pixel_format: str) -> None:
    """Decode, then convert to the pixel format. Raises InvalidError for a file that breaks off or is damaged."""
    image = _opened(encoded)
    if image is None:
        return
    try:
        pixels = np.asarray(image.convert("L" if pixel_format == "Grayscale" else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidError(
            f"ImageDecoder: {image.format} of {image.size[0]}×{image.size[1]} pixels is damaged, {error}"
        ) from None
    np.copyto(out[0], pixels[..., ::-1] if pixel_format == "BGR" else pixels.reshape(out[0].shape))


def _pixmap(*pixels: int, width: int, height: int) -> Array:
    """The bytes of a PPM file, the simplest format there is."""
    return np.frombuffer(f"P6 {width} {height} 255\n".encode() + bytes(pixels), np.uint8)


_TWO = _pixmap(255, 0, 0, 0, 128, 7, width=2, height=1)
IMAGE_DECODER = Op(
    "ImageDecoder",
    infer,
    moves,
    (Kernel("pillow", run, scratch_bytes=scratch_bytes),),
    cases=(
        Case("rgb", inputs=(_TWO,), cost=Cost()),
        Case("bgr", inputs=(_TWO,), attrs={"pixel_format": "BGR"}),
        Case("gray", inputs=(_TWO,), attrs={"pixel_format": "Grayscale"}),
        Case("no_image", inputs=(np.zeros(9, np.uint8),)),
        Case("bomb", inputs=(_pixmap(width=1 << 15, height=1 << 15),), raises=InvalidError),
        Case("two_axes", inputs=(_TWO[None],), raises=ShapeError),
        Case("floats", inputs=((9,),), raises=DTypeError),
        Case("format", inputs=(_TWO,), attrs={"pixel_format": "CMYK"}, raises=AttributeValueError),
    ),
)
