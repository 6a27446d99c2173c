"""The pixels of one image, whatever its format, mode, bit depth and metadata."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from cifar_research.runtime.errors import ImageError

# Pillow knows more formats: some are read by other programs, others are recognised by nothing but their name.
_FORMATS = ("JPEG", "PNG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "HEIF")
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # which a build of Pillow may lack
_DECLARED = ("PPM", "JPEG2000")  # these files say how many bits they use, and Pillow scales them to 16
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
log = logging.getLogger(__name__)


class _Remarks:
    """Logs what is wrong with the metadata of one image, in one line at most."""

    def __init__(self, name: str) -> None:
        self._name, self._is_logged = name, False

    def metadata(self, reason: Any) -> None:
        if not self._is_logged:
            log.info("%s: its metadata are damaged (%s); its pixels are used", self._name, str(reason).strip())
        self._is_logged = True

    def warning(self, reason: Any) -> None:
        log.warning("%s: %s", self._name, reason)


_remarks: ContextVar[_Remarks | None] = ContextVar("remarks", default=None)  # on the image that a thread decodes


def decode(source: Any, size: int) -> np.ndarray:
    """Return the pixels of an image as uint8 [size, size, 3], the way up that its EXIF says.

    source: a file, by its path or open for reading in binary, a PIL image, or an array [h, w] or [h, w, 1 to 4]. Any mode
    becomes RGB, transparency is composited on white, other numbers than uint8 are scaled as `eight_bits` says, and any
    size is resized bilinearly without regard to its proportions. ImageError if it cannot be read.
    """
    is_file = not isinstance(source, (np.ndarray, Image.Image))
    name = str(source) if isinstance(source, (str, Path)) else getattr(source, "name", None) or type(source).__name__
    token = _remarks.set(_Remarks(name))
    try:
        return _of_file(source, size) if is_file else _of_memory(source, size)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ImageError(name, _reason(error, name)) from error
    finally:
        _remarks.reset(token)


def decoded_or_error(source: Any, size: int) -> np.ndarray | ImageError:
    """Return what `decode` returns or raises."""
    try:
        return decode(source, size)
    except ImageError as error:
        return error


def eight_bits(values: np.ndarray, limit: int | None = None) -> np.ndarray:
    """Return numbers of any type as uint8, scaled by the range that they use.

    uint8 stays as it is, and false and true become 0 and 255. Of other types the largest number decides: floats up to 1
    go from 0 to 1, up to 255 is 8 bits, up to 4095 is 12, up to 65535 is 16. limit: the end of the range if it is known.
    ValueError for numbers below 0, above 65535, not finite, or so small that their range is unclear.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    lowest, highest = values.min(), values.max()
    if values.dtype.kind not in "fiu" or not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError("its pixels are not finite numbers; convert it to 8 bits")
    if limit is None and values.dtype.kind == "f" and highest <= 1.001:  # with what rounding may add
        limit = 1
    elif limit is None and (highest == 0 or highest >= 16):
        limit = next((most for most in (255, 4095, 65535) if highest <= most), None)
    if lowest < 0 or limit is None:
        raise ValueError(
            f"its {values.dtype} values go from {lowest:g} to {highest:g}, and only 0 to 1 (float), 255, 4095 and 65535 "
            "are known; convert it to 8 bits"
        )
    return np.rint(np.minimum(values, limit) * (255 / limit)).astype(np.uint8)


@contextlib.contextmanager
def warnings_logged() -> Iterator[None]:
    """Log what Pillow warns of while images are decoded, in any thread, with the name of the image."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def log_it(message: Warning | str, category: type[Warning], *args: Any) -> None:
            remarks = _remarks.get()
            if remarks is None:
                show(message, category, *args)
            elif issubclass(category, Image.DecompressionBombWarning):
                remarks.warning(message)
            else:
                remarks.metadata(message)

        warnings.filterwarnings("always", module=r"PIL\.")
        warnings.showwarning = log_it
        yield


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that are looked for in a file: those of ours that the installed Pillow reads."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(
        name for name in _FORMATS if name in Image.OPEN and (name not in _FEATURES or features.check(_FEATURES[name]))
    )


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, UnidentifiedImageError):
        is_heic = name.lower().endswith((".heic", ".heif")) and "HEIF" not in formats()
        return "HEIC needs `pip install pillow-heif`" if is_heic else "it is of no format known here"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__


def _of_memory(source: np.ndarray | Image.Image, size: int) -> np.ndarray:
    if isinstance(source, Image.Image):
        return _pixels(source, size)
    if source.ndim not in (2, 3) or source.ndim == 3 and source.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(f"{source.dtype} {list(source.shape)} is not [h, w] or [h, w, 1 to 4]")
    pixels = eight_bits(source)
    if pixels.shape == (size, size, 3):
        return pixels
    return _pixels(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels), size)


def _of_file(source: Any, size: int) -> np.ndarray:
    try:
        with Image.open(source, formats=formats()) as image:
            return _pixels(image, size, source)
    except Exception as error:
        # What Pillow stumbles over may be a text or a profile.
        content = None if isinstance(error, OSError) and error.errno else _without_metadata(source)
        if content is None:
            raise
        try:
            plain = io.BytesIO(content)
            with Image.open(plain, formats=formats()) as image:
                pixels = _pixels(image, size, plain)
        except Exception:
            raise error from None
        _remarks.get().metadata(error)
        return pixels


def _pixels(image: Image.Image, size: int, source: Any = None) -> np.ndarray:
    """Return an opened image as RGB of this size; source: where it comes from, if it can be opened again."""
    raw_mode = _raw_mode(image)
    image.load()
    turn = _turn(image)
    values = None
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
    elif source is not None and raw_mode.endswith((";16B", ";16L", ";16N")):
        values = _sixteen_bit_colour(image, raw_mode, source)
    if values is not None:
        pixels = eight_bits(values, 65535 if image.format in _DECLARED else None)
        if (key := image.info.get("transparency")) is not None:
            is_hidden = values == np.asarray(key)
            pixels[is_hidden if values.ndim == 2 else is_hidden.all(-1)] = 255
        image = Image.fromarray(pixels)
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how an image is to be turned, None if it is upright or its EXIF cannot be read."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception as error:  # damaged EXIF raises many kinds
        _remarks.get().metadata(error)
        return None


def _raw_mode(image: Image.Image) -> str:
    """Return in which mode an image that is not loaded yet is stored, such as RGB;16B; empty if it does not say."""
    args = image.tile[0].args if len(getattr(image, "tile", ())) == 1 else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _sixteen_bit_colour(image: Image.Image, raw_mode: str, source: Any) -> np.ndarray:
    """Return the values uint16 [h, w, C] of an image with 16 bits a channel, of which Pillow keeps the upper byte.

    Decoded once more in the other order of bytes, it keeps the lower one.
    """
    high = np.asarray(image, np.uint16)
    kind, order = raw_mode.split(";16")
    if kind not in ("RGB", "RGBA", "RGBX"):
        if 0 < high.max(initial=0, where=np.arange(high.shape[-1]) < 3) < 16:
            raise ValueError("of the 16 bits of its channels, 12 or fewer are used; convert it to 8 bits")
        return high.astype(np.uint8)
    if hasattr(source, "seek"):
        source.seek(0)
    with Image.open(source, formats=formats()) as again:
        swapped = f"{kind};16{'L' if order == 'B' or order == 'N' and sys.byteorder == 'big' else 'B'}"
        tile = again.tile[0]
        args = (swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped
        again.tile = [tile._replace(args=args)]
        return np.asarray(again, np.uint16) | high << 8


def _without_metadata(source: Any) -> bytes | None:
    """Return a PNG or JPEG file with nothing but what its pixels and its orientation need; None of other files."""
    if hasattr(source, "seek"):
        source.seek(0)
        content = source.read()
    else:
        content = Path(source).read_bytes()
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _plain_png(content)
    return _plain_jpeg(content) if content.startswith(b"\xff\xd8\xff") else None


def _plain_png(content: bytes) -> bytes:
    plain, place = content[:8], 8
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        kind, chunk = content[place + 4 : place + 8], content[place:end]
        if kind == b"eXIf":  # whose checksum may be what is damaged
            plain += chunk[:-4] + zlib.crc32(chunk[4:-4]).to_bytes(4)
        elif kind[0] < ord("a") or kind == b"tRNS":  # critical, as a capital says
            plain += chunk
        place = end
    return plain


def _plain_jpeg(content: bytes) -> bytes | None:
    plain, place = content[:2], 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker, end = content[place + 1], place + 2 + int.from_bytes(content[place + 2 : place + 4])
        if marker == 0xDA:  # from here on, pixels
            return plain + content[place:]
        # Comments and applications' own segments; EXIF is in 1, and 14 says how colours are coded.
        if marker != 0xFE and (marker not in range(0xE0, 0xF0) or marker in (0xE1, 0xEE)):
            plain += content[place:end]
        place = end
    return None
