"""Many small image files at once, by TensorFlow's decoders: Pillow's threads wait for each other in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cifar_research.data import images
from cifar_research.runtime.errors import ImageError

_XMP_TURN = b"tiff:Orientation"  # which Pillow goes by where there is no EXIF
_MOST_BYTES = 1 << 16  # in larger files most of the time is the decoder's, which other threads need not wait for


def decoder(size: int) -> Callable[[Sequence[str]], list[np.ndarray | ImageError]]:
    """Return a function from paths to what images.decode gives for each: pixels uint8 [size, size, 3], or its error.

    JPEG and PNG files of just that size, in plain RGB, are decoded all at once, to the same pixels; others by Pillow.
    """
    import tensorflow as tf

    def of_kind(decode: Callable[[Any], Any]) -> Any:
        def one(content: Any) -> Any:
            return tf.ensure_shape(decode(content), [size, size, 3])

        def many(contents: Any) -> Any:
            return tf.map_fn(one, contents, fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8))

        # Traced here: threads that come at once would each do it.
        return tf.function(many, [tf.TensorSpec([None], tf.string)]).get_concrete_function()

    kinds = {
        # As Pillow's libjpeg does it by default.
        "jpeg": of_kind(lambda content: tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE")),
        "png": of_kind(lambda content: tf.io.decode_png(content, 3)),
    }

    def decode(paths: Sequence[str]) -> list[np.ndarray | ImageError]:
        decoded: list[np.ndarray | ImageError | None] = [None] * len(paths)
        contents = [_read(path) for path in paths]
        for kind, call in kinds.items():
            places = [i for i, content in enumerate(contents) if _plain_kind(content, size) == kind]
            if not places:
                continue
            try:
                found = call(tf.constant([contents[i] for i in places])).numpy()
            except tf.errors.InvalidArgumentError:
                continue  # Pillow will say which of them is damaged
            for i, pixels in zip(places, found, strict=True):
                decoded[i] = pixels
        return [_by_pillow(path, size) if done is None else done for path, done in zip(paths, decoded, strict=True)]

    return decode


def _read(path: str) -> bytes:
    """Return a small file's content; nothing if it is a large one, or cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError:
        return b""
    return b"" if len(content) > _MOST_BYTES else content


def _plain_kind(content: bytes, size: int) -> str | None:
    """Return `jpeg` or `png` if both decoders make the same of this file, without a look at its EXIF or its colours."""
    if content.startswith(b"\xff\xd8\xff"):
        if b"Exif" in content or _XMP_TURN in content or b"Adobe" in content or not content.endswith(b"\xff\xd9"):
            return (
                None  # turned perhaps; CMYK perhaps; cut off, of which TensorFlow's library would write to the terminal
            )
        return "jpeg" if _jpeg_shape(content) == (size, size, 3) else None
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        wanted = size.to_bytes(4) * 2 + b"\x08\x02"  # 8 bits of RGB
        turned = b"eXIf" in content or _XMP_TURN in content
        is_plain = content[16:26] == wanted and not turned and b"tRNS" not in content
        return "png" if is_plain else None
    return None


def _jpeg_shape(content: bytes) -> tuple[int, int, int] | None:
    """Return (height, width, components) as the frame header says, None if there is none of a usual kind."""
    place = 2
    while place + 10 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = (int.from_bytes(content[place + i : place + i + 2]) for i in (5, 7))
            return height, width, content[place + 9]
        place += 2 + length
    return None


def _by_pillow(path: str, size: int) -> np.ndarray | ImageError:
    try:
        return images.decode(path, size)
    except ImageError as error:
        return error
