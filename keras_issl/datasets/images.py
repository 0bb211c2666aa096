"""Images: decoded from whatever they are stored as, one or many at a time, and arrays of them checked."""

import contextlib
import io
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps

from keras_issl.datasets.device import DeviceImages

_TRIES = 20  # images in place of a broken one
_CHUNK = 64  # images a task at most: enough that the pool's own cost vanishes, few enough that progress moves


def decode_image(source, image_size=None, resize=None):
    """One image, whatever it is stored as, as uint8 RGB.

    EXIF orientation is applied; transparency is laid over white; grayscale, palette, CMYK and 16-bit images (divided
    by 257) become 8-bit RGB; of an animation the first frame is taken.

    Args:
        source: encoded bytes, a path, `{"bytes": ..., "path": ...}`, a Pillow image or a uint8 array (H, W[, 1|3|4]).
        image_size: None keeps the size. An integer S resizes the shorter side (bilinear, antialiased) and crops the
            centre S x S, with torchvision's rounding.
        resize: what the shorter side is resized to, R pixels, at least S. Default: S, which keeps the whole of it.
            Large JPEGs are first shrunk inside the decoder, to no less than 2 R.

    Returns:
        uint8 array (H, W, 3), or (S, S, 3).

    Raises:
        ValueError: `resize` without `image_size` or below it, pixels that are floating-point numbers.

    Example:

    ```python
    image = np.zeros((300, 500, 3), "uint8")
    keras_issl.datasets.decode_image(image, image_size=224, resize=256).shape  # (224, 224, 3)
    ```
    """
    check_sizes(image_size, resize)
    resize = resize or image_size
    with _open(source) as image:
        if resize and image.format == "JPEG":
            image.draft(None, (2 * resize, 2 * resize))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _to_rgb(image)
    if resize and rgb.size != (resize, resize):
        width, height = rgb.size
        short = min(width, height)
        rgb = rgb.resize((resize * width // short, resize * height // short), Image.Resampling.BILINEAR)
    if image_size and rgb.size != (image_size, image_size):
        left, top = round((rgb.width - image_size) / 2), round((rgb.height - image_size) / 2)
        rgb = rgb.crop((left, top, left + image_size, top + image_size))
    return np.asarray(rgb)


def check_sizes(image_size, resize):
    """Raises a `ValueError` unless both are positive integers or None, and `resize` at least a given `image_size`."""
    for name, value in {"image_size": image_size, "resize": resize}.items():
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"`{name}` should be a positive integer or None. Received: {value!r}.")
    if resize is not None and (image_size is None or resize < image_size):
        raise ValueError(
            "`resize` should be at least `image_size`, the side of the centre that is kept, which must be given too. "
            f"Received: resize={resize}, image_size={image_size}. Pass e.g. resize=256, image_size=224."
        )


def _open(source):
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if isinstance(source, list):  # a Hugging Face Array2D or Array3D column
        source = np.asarray(source, np.uint8)
    if isinstance(source, np.ndarray):
        return Image.fromarray(source[..., 0] if source.ndim == 3 and source.shape[-1] == 1 else source)
    if isinstance(source, Image.Image):
        return source.copy()  # it is closed after use, and it is not ours
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _to_rgb(image):
    if image.mode == "F":
        raise ValueError("floating-point images have no agreed range; store them as 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
        wide = np.asarray(image, np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"its values should be in [0, 65535], but are in [{wide.min()}, {wide.max()}]")
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_record(records, index, image_size, shape, resize=None):
    """Decodes one record. Errors say where it came from; a second size is an error when sizes are kept."""
    try:
        image = decode_image(records.read(index), image_size, resize)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on damaged files
        raise BrokenImage(records.where(index), f"{type(error).__name__}: {error}") from error
    if shape is not None and image.shape != shape:
        raise ValueError(
            f"`image_size` should be given when the stored sizes differ. Received: image_size=None, but "
            f"{records.where(index)} is {image.shape[0]}x{image.shape[1]} (height x width) and the first image is "
            f"{shape[0]}x{shape[1]}. Pass e.g. image_size={min(shape[:2])}."
        )
    return image


class BrokenImage(ValueError):
    """An image that cannot be read: `.where` it is, and the `.reason`."""

    def __init__(self, where, reason):
        self.where, self.reason = where, reason
        super().__init__(
            f"`source` should hold readable images. Received: {where}, which fails with {reason}. "
            'Repair or remove it, or pass on_error="skip" or "replace".'
        )


class EncodedImages:
    """Images that do not fit in memory: looks like a uint8 array (N, H, W, 3), decodes what is indexed, in parallel.

    Attributes:
        by_blocks: whether an image is read with all of its block, and more blocks than memory holds: images far from
            each other are then slow to read.
        replaced: None: an image that cannot be read is an error. A dict: another image takes its place, and its record
            number and `BrokenImage` are put here.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, records, indices, image_size, shape, workers, resize=None, by_blocks=False, replaced=None):
        self._records, self._indices = records, np.asarray(indices)
        self._image_size, self._resize, self._shape, self._workers = image_size, resize, tuple(shape), workers
        self.by_blocks, self.replaced = by_blocks, replaced

    @property
    def shape(self):
        return (len(self._indices), *self._shape)

    def __len__(self):
        return len(self._indices)

    def subset(self, indices):
        """The images at `indices`, still encoded."""
        chosen = self._indices[indices]
        how = (self._image_size, self._shape, self._workers, self._resize, self.by_blocks, self.replaced)
        return EncodedImages(self._records, chosen, *how)

    def __getitem__(self, indices):
        chosen = self._indices[indices]
        images = np.empty((np.size(chosen), *self._shape), np.uint8)
        what = (self._records, np.atleast_1d(chosen), self._image_size, self._shape, self._workers)
        broken = decode_records(*what, resize=self._resize, out=images, skip=self.replaced is not None)
        for position, error in broken.items():
            record = int(np.atleast_1d(chosen)[position])
            images[position] = self._stand_in(record)
            if not self.replaced:
                warnings.warn(
                    f"An image cannot be read, so another takes its place: {error.where} ({error.reason}). All of them "
                    "are listed in `.replaced`.",
                    stacklevel=3,
                )
            self.replaced[record] = error
        return images if np.ndim(chosen) else images[0]

    def _stand_in(self, record):
        """An image in place of a broken one: always the same, so that a run that is resumed sees it again."""
        rng, size = np.random.default_rng(record), (self._image_size, self._shape, self._resize)
        for other in rng.integers(len(self._indices), size=_TRIES):
            with contextlib.suppress(BrokenImage):
                return decode_record(self._records, self._indices[other], *size)
        raise BrokenImage(self._records.where(record), f"and neither can {_TRIES} others, drawn at random, be read")


def decode_records(
    records, indices, image_size, shape, workers, *, resize=None, out=None, skip=False, progress=lambda done: None
):
    """Decodes the records at `indices` into `out` (None: only checks them); returns `{position: BrokenImage}`."""
    broken = {}
    chunk = max(1, min(_CHUNK, len(indices) // (4 * workers)))  # of a batch too every worker gets some

    def decode(start):
        for position in range(start, min(start + chunk, len(indices))):
            try:
                image = decode_record(records, indices[position], image_size, shape, resize)
            except BrokenImage as error:
                if not skip:
                    raise
                broken[position] = error
            else:
                if out is not None:
                    out[position] = image

    starts = range(0, len(indices), chunk)
    if workers == 1 or len(starts) == 1:
        for start in starts:
            decode(start)
            progress(min(start + chunk, len(indices)))
        return broken
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes outside the interpreter lock
        for start, _ in zip(starts, pool.map(decode, starts), strict=True):
            progress(min(start + chunk, len(indices)))
    return broken


def progress_line(total, label, verbose="auto", *, unit="images", patience=3.0, begun=0):
    """A function of the number done that keeps one line on stderr up to date.

    `verbose="auto"` writes only to a terminal and only after `patience` seconds; True always; False never. A `total` of
    None is unknown: `update(done, finished=True)` ends the line. What had been done before, `begun`, is no part of the
    rate.
    """
    start, last = time.monotonic(), [0.0]
    shown = verbose is True or (verbose == "auto" and sys.stderr.isatty())

    def update(done, finished=False):
        now = time.monotonic()
        waited = now - start
        finished = finished or (total is not None and done >= total)
        if not shown or (verbose == "auto" and waited < patience) or (now - last[0] < 0.2 and not finished):
            return
        last[0] = now
        of = "" if total is None else f"/{total:,}"
        rate = (done - begun) / max(waited, 1e-9)
        sys.stderr.write(f"\r{label}: {done:,}{of} {unit}, {rate:,.0f}/s" + ("\n" if finished else ""))
        sys.stderr.flush()

    return update


def as_images(images, channels=3):
    """Checks a batch of images and gives it the encoder's channels; one channel is repeated.

    Args:
        images: array or tensor (N, H, W), (N, H, W, 1) or (N, H, W, channels), any number type.
        channels: what the encoder takes, 3 unless it was built for others.

    Returns:
        NumPy array (N, H, W, channels) of the same type; the input itself where nothing had to change, and for
        `DeviceImages`.

    Raises:
        ValueError: another rank or number of channels, values that are not numbers, NaN or infinity.

    Example:

    ```python
    keras_issl.datasets.as_images(np.zeros((8, 28, 28))).shape  # (8, 28, 28, 3)
    ```
    """
    given, images = images, to_numpy(images)
    single = images.ndim == 3 and images.shape[-1] in (3, channels) and images.shape[-1] > 1
    if images.ndim not in (3, 4) or single:
        hint = "Give one image a batch axis: images[None]." if single else "Stack images of one size in one array."
        raise ValueError(f"`images` should have shape (N, H, W, {channels}). Received: shape {images.shape}. {hint}")
    if images.dtype.kind not in "uifb" and images.dtype.name != "bfloat16":
        raise ValueError(f"`images` should hold numbers. Received: dtype {images.dtype}.")
    if images.dtype.kind not in "uib" and not np.isfinite(images.sum(dtype=np.float64)):
        rows = ~np.isfinite(images.reshape(len(images), -1)).all(axis=1)
        raise ValueError(
            f"`images` should be finite. Received: NaN or infinity in {rows.sum()} of {len(images)} images, first in "
            f"image {int(rows.argmax())}."
        )
    if images.ndim == 3:
        images = images[..., None]  # (N, H, W, 1)
    if images.shape[-1] == 1 and channels == 3:
        images = np.repeat(images, 3, axis=-1)
    if images.shape[-1] != channels:
        raise ValueError(
            f"`images` should have 1 or {channels} channels, last. Received: shape {images.shape}. Move the channels "
            "last, or build an encoder with `channels=`."
        )
    return given if isinstance(given, DeviceImages) else images


def check_range(images):
    """Raises a `ValueError` for images that are not in [0, 255], or in [0, 1] as floats: nearly black ones."""
    if images.dtype == np.uint8 or not images.size:
        return
    low, high = images.min(), images.max()
    if low < 0 or high > 255 or (images.dtype.kind == "f" and 0 < high <= 1):
        raise ValueError(
            f"Images should hold values in [0, 255]. Received: {images.dtype} values in [{low}, {high}]. "
            "Multiply images in [0, 1] by 255."
        )


def to_numpy(value):
    """A NumPy array from an array or a tensor of any backend, on any device."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
