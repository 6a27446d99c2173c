"""Decode one image, whatever its format, mode, bit depth and metadata."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.Image import Transpose

from cifar_research.runtime.errors import ImageError

# Pillow has more formats: some need external programs, others are recognised by suffix only.
_FORMATS = ("JPEG", "PNG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "HEIF")
_DECLARED = ("PPM", "JPEG2000")  # these files state their bit depth, and Pillow scales them to 16 bits
# By EXIF orientation, from 2 on: the transposition that turns the image upright.
_TURNS = dict(enumerate((
    Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE, Transpose.ROTATE_270,
    Transpose.TRANSVERSE, Transpose.ROTATE_90,
), start=2))  # fmt: skip
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# Comments and application segments, except EXIF (0xE1) and the colour transform (0xEE).
_JPEG_METADATA = {0xFE, *range(0xE0, 0xF0)} - {0xE1, 0xEE}
log = logging.getLogger(__name__)

File = str | Path


def decode(source: File | Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Return an image as RGB, uint8 [size, size, 3], turned upright by its EXIF orientation.

    source: a path, a PIL image, or an array [h, w] or [h, w, 1 to 4]. Transparency is composited on white, other types
    than uint8 are scaled by `eight_bits`, and the image is resized bilinearly to a square. ImageError if it cannot be
    read.
    """
    name = str(source) if isinstance(source, (str, Path)) else type(source).__name__
    try:
        if isinstance(source, np.ndarray):
            return _of_array(source, size)
        return _pixels(source, size) if isinstance(source, Image.Image) else _of_file(source, size)
    except Exception as error:  # Pillow's decoders raise many types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is not supported"
        raise ImageError(name, reason) from error


def decoded_or_error(source: File, size: int) -> np.ndarray | ImageError:
    """Return the result of `decode`, or its ImageError."""
    try:
        return decode(source, size)
    except ImageError as error:
        return error


def eight_bits(values: np.ndarray, limit: int | None = None) -> np.ndarray:
    """Return numbers of any type as uint8, scaled by the range that they use.

    uint8 is unchanged, and booleans become 0 and 255. Otherwise the maximum decides the range: floats up to 1, then
    255, 4095 and 65535. limit: the end of the range, if known. ValueError for numbers that are below 0, above 65535 or
    not finite, or whose maximum is too small to decide.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    lowest, highest = values.min(), values.max()
    if values.dtype.kind not in "fiu" or not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError("its pixels are not finite numbers; convert it to 8 bits")
    if limit is None and values.dtype.kind == "f" and highest <= 1.001:  # with a margin for rounding
        limit = 1
    elif limit is None and (highest == 0 or highest >= 16):
        limit = next((most for most in (255, 4095, 65535) if highest <= most), None)
    if lowest < 0 or limit is None:
        raise ValueError(
            f"its {values.dtype} values go from {lowest:g} to {highest:g}, and only 0 to 1 (float), 255, 4095 and 65535 "
            "are supported; convert it to 8 bits"
        )
    return np.rint(np.minimum(values, limit) * (255 / limit)).astype(np.uint8)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings about large images and damaged metadata, in all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the image formats that this installation of Pillow can read."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _of_array(values: np.ndarray, size: int) -> np.ndarray:
    if values.ndim not in (2, 3) or values.ndim == 3 and values.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(f"{values.dtype} {list(values.shape)} is not [h, w] or [h, w, 1 to 4]")
    pixels = eight_bits(values)
    return _pixels(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels), size)


def _of_file(file: File, size: int) -> np.ndarray:
    try:
        return _opened(file, size)
    except Exception as error:
        # The damage may be in a text chunk or a colour profile only.
        try:
            pixels = _opened(io.BytesIO(_without_metadata(file)), size)
        except Exception:
            raise error from None
        log.info("%s: its metadata are damaged (%s); its pixels are used", file, error)
        return pixels


def _opened(file: File | io.BytesIO, size: int) -> np.ndarray:
    with Image.open(file, formats=formats()) as image:
        return _pixels(image, size, file)


def _pixels(image: Image.Image, size: int, file: File | io.BytesIO | None = None) -> np.ndarray:
    """Return an opened image as RGB of this size; file: its source, if it can be reopened."""
    raw_mode = _raw_mode(image)
    image.load()
    turn = None
    with contextlib.suppress(Exception):  # damaged EXIF raises many types
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    values = None
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
    elif file is not None and raw_mode.endswith((";16B", ";16L", ";16N")):
        values = _sixteen_bit_colour(image, raw_mode, file)
    if values is not None:
        pixels = eight_bits(values, 65535 if image.format in _DECLARED else None)
        if (key := image.info.get("transparency")) is not None:
            is_hidden = values == np.asarray(key)
            pixels[is_hidden if values.ndim == 2 else is_hidden.all(-1)] = 255
        image = Image.fromarray(pixels)
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # La has no conversion to RGBA
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _raw_mode(image: Image.Image) -> str:
    """Return the stored mode of an image that is not loaded yet, such as RGB;16B, or ""."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    args = tiles[0].args if len(tiles) == 1 else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _sixteen_bit_colour(image: Image.Image, raw_mode: str, file: File | io.BytesIO) -> np.ndarray:
    """Return uint16 [h, w, C]: Pillow keeps the high byte, and with swapped bytes the low one."""
    high = np.asarray(image, np.uint16)
    kind, order = raw_mode.split(";16")
    if kind not in ("RGB", "RGBA", "RGBX"):
        if 0 < high.max(initial=0, where=np.arange(high.shape[-1]) < 3) < 16:
            raise ValueError("it uses 12 or fewer of the 16 bits of its channels; convert it to 8 bits")
        return high.astype(np.uint8)
    swapped = f"{kind};16{'L' if order == 'B' else 'B'}"
    with Image.open(file, formats=formats()) as again:
        tile = again.tile[0]
        again.tile = [tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)]
        return np.asarray(again, np.uint16) | high << 8


def _without_metadata(file: File) -> bytes:
    """Return a PNG or JPEG file with pixels and orientation only; nothing for other formats."""
    content, plain = Path(file).read_bytes(), bytearray()
    if content.startswith(_PNG):
        begin = len(_PNG)
        while begin + 12 <= len(content):
            end = begin + 12 + int.from_bytes(content[begin : begin + 4])
            kind, chunk = content[begin + 4 : begin + 8], content[begin:end]
            if kind == b"eXIf":  # its checksum may be the damage
                plain += chunk[:-4] + zlib.crc32(chunk[4:-4]).to_bytes(4)
            elif kind[0] < ord("a") or kind == b"tRNS":  # a capital marks a critical chunk
                plain += chunk
            begin = end
        return _PNG + plain
    if content.startswith(_JPEG):
        begin = len(_JPEG)
        while begin + 4 <= len(content) and content[begin] == 0xFF:
            marker, end = content[begin + 1], begin + 2 + int.from_bytes(content[begin + 2 : begin + 4])
            if marker == 0xDA:  # pixels follow
                return _JPEG + plain + content[begin:]
            if marker not in _JPEG_METADATA:
                plain += content[begin:end]
            begin = end
    return b""
