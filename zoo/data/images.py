"""Images: from files to pixels, and from pixels to patches of a budget."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from zoo.data.media import BadMedia
from zoo.data.media_config import MediaConfig
from zoo.errors import UserError

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""What a file with this extension holds."""


def read_image(path: Path, config: MediaConfig) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image file as 8-bit RGB: upright (EXIF orientation), transparency on white, 16 bits scaled to 8.

    Sizes are checked before anything is decoded. Raises `BadMedia` naming the file if it is missing, is not what its
    extension says, is damaged or truncated, an animation, or of a refused size."""
    pillow: Any = _pillow(path)
    expected = FORMATS[path.suffix.lower()]
    try:
        with pillow.Image.open(path, formats=[expected]) as image:
            check_size(path, image.size[0], image.size[1], config)
            if getattr(image, "n_frames", 1) > 1:
                raise BadMedia(f"{path}: {image.n_frames} images in one file; give an animation as a video")
            image.load()
            return _as_rgb(path, pillow.ImageOps.exif_transpose(image), pillow)
    except FileNotFoundError:
        raise BadMedia(f"{path}: no such file") from None
    except pillow.UnidentifiedImageError:
        raise BadMedia(f"{path}: not a {expected} file{_what_it_is(path, pillow)}") from None
    except (BadMedia, MemoryError):
        raise
    except pillow.Image.DecompressionBombError:
        raise BadMedia(f"{path}: more pixels than media.max_image_pixels={config.max_image_pixels:,}") from None
    except Exception as error:  # what the decoders raise on damaged files is of many types
        raise BadMedia(f"{path}: a damaged {expected} file: {_one_line(error)}") from None


def fitted_squares(height: int, width: int, *, square: int, max_squares: int) -> tuple[int, int]:
    """How many rows and columns of squares of `square` pixels an image is resized to.

    The scale is min(1, sqrt(max_squares * square^2 / (height * width))), or what makes the shorter side one square if
    that is more; both sides are rounded to whole squares. Raises ValueError if one side is more than `max_squares`
    times the other."""
    if max(height, width) > max_squares * min(height, width):
        raise ValueError(f"{width} x {height} pixels are too elongated for {max_squares} squares")
    scale = min(1.0, math.sqrt(max_squares * square**2 / (height * width)))
    scale = max(scale, square / min(height, width))
    rows, columns = (max(1, round(side * scale / square)) for side in (height, width))
    while rows * columns > max_squares:  # rounded up by too much
        fewer = [size for size in ((rows - 1, columns), (rows, columns - 1)) if min(size)]
        rows, columns = min(fewer, key=lambda size: abs(math.log(size[0] * width / (size[1] * height))))
    return rows, columns


def resized(pixels: UInt8[np.ndarray, "h w 3"], config: MediaConfig, max_patches: int) -> UInt8[np.ndarray, "H W 3"]:
    """The image at the size that its budget gives it (`fitted_squares`), by antialiased bicubic interpolation."""
    from PIL import Image

    square = config.patch_size * config.merge
    max_squares = max_patches // config.merge**2
    try:
        rows, columns = fitted_squares(*pixels.shape[:2], square=square, max_squares=max_squares)
    except ValueError as error:
        raise BadMedia(f"{error} of {square} x {square} pixels, the budget of media.max_patches") from None
    if pixels.shape[:2] == (rows * square, columns * square):
        return pixels
    return np.asarray(
        Image.fromarray(pixels).resize((columns * square, rows * square), Image.Resampling.BICUBIC), np.uint8
    )


def square(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The square in the middle of an image, resized by antialiased bicubic interpolation: what tokenizers of images
    read."""
    from PIL import Image

    height, width, _ = pixels.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cut = np.ascontiguousarray(pixels[top : top + short, left : left + short])
    if short == side:
        return cut
    return np.asarray(Image.fromarray(cut).resize((side, side), Image.Resampling.BICUBIC), np.uint8)


def patches_of(
    pixels: UInt8[np.ndarray, "H W 3"], patch_size: int, merge: int
) -> tuple[UInt8[np.ndarray, "patches pixels"], Float32[np.ndarray, "patches 2"]]:
    """(patches, coordinates) in the order of `zoo.data.PackedImages`: squares row by row, within a square its patches
    row by row. Both sides must be multiples of patch_size * merge."""
    p, m = patch_size, merge
    rows, columns = pixels.shape[0] // (p * m), pixels.shape[1] // (p * m)
    split = pixels.reshape(rows, m, p, columns, m, p, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    down, across = np.meshgrid(_centres(rows * m), _centres(columns * m), indexing="ij")
    centres = np.stack([down, across], -1).reshape(rows, m, columns, m, 2).transpose(0, 2, 1, 3, 4)
    return split.reshape(-1, 3 * p * p), centres.reshape(-1, 2)


def scaled(patches: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """x / 127.5 - 1: 8-bit values in -1..1."""
    return patches.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _centres(count: int) -> np.ndarray:
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


def check_size(path: Path, width: int, height: int, config: MediaConfig) -> None:
    """Raises `BadMedia` for sizes that `config` refuses."""
    shown = f"{path}: {width:,} x {height:,} pixels"
    if min(width, height) < config.min_image_side:
        raise BadMedia(f"{shown}, a side has fewer than media.min_image_side={config.min_image_side}")
    if max(width, height) > config.max_image_side:
        raise BadMedia(f"{shown}, a side has more than media.max_image_side={config.max_image_side:,}")
    if width * height > config.max_image_pixels:
        raise BadMedia(f"{shown}, more than media.max_image_pixels={config.max_image_pixels:,}")


def _as_rgb(path: Path, image: Any, pillow: Any) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits of grey, under several names
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadMedia(f"{path}: 32-bit pixels; at most 16 bits are read")
        return np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise BadMedia(f"{path}: floating-point pixels; at most 16-bit integers are read")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        white = pillow.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow.Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"), np.uint8)


def _what_it_is(path: Path, pillow: Any) -> str:
    try:
        with pillow.Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            return f" but {image.format}: mend its extension"
    except Exception:
        return ", or a damaged one"


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pillow(path: Path) -> Any:
    try:
        import PIL
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise UserError(f"{path}: reading images needs Pillow: pip install '.[media]'") from None
    return PIL
