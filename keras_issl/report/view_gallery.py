"""A gallery of augmented views: what an encoder is shown of some images, as a PNG. It knows arrays only."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_issl.report.gallery import (
    BYTES,
    GAP,
    HEAD,
    INK,
    LINE,
    MARGIN,
    PAD,
    PALE,
    SIDES,
    fitted,
    fitting,
    png,
    scaled,
    wrapped,
)


def views(images, views, path):
    """Draws images and the augmented views that a model sees of them, a row an image, into a PNG.

    Small images are enlarged by a whole factor, large ones shrunk, as in `neighbours`; smaller views (multi-crop) are
    drawn in proportion to the first.

    Args:
        images: uint8 array (N, H, W, C) with 1 or 3 channels: the rows.
        views: A list of arrays (N, h, w, C) of numbers in [0, 255], the views of each image.
        path: Where to write the picture; ends in `.png`.

    Returns:
        The path. The text under the rows is also the PNG's `Description`.

    Raises:
        ValueError: No images or views, or shapes that do not belong together.

    Example:

    >>> keras_issl.report.views(images[:4], [images[:4], images[:4, :, ::-1]], "views.png").name
    'views.png'
    """
    images, drawn, path = np.asarray(images), [np.asarray(view, np.float32) for view in views], Path(path)
    if images.ndim != 4 or not len(images) or not drawn or any(v.ndim != 4 or len(v) != len(images) for v in drawn):
        shapes = ", ".join(str(view.shape) for view in drawn)
        raise ValueError(
            "`images` and each of `views` should be (N, height, width, channels) with one N of at least 1. Received: "
            f"images {images.shape}, views {shapes or 'none'}."
        )
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` should end in .png. Received: {str(path)!r}.")
    lost = sum(int((~np.isfinite(view)).sum()) for view in drawn)
    drawn = [np.clip(np.nan_to_num(view, nan=0.0), 0, 255).round().astype(np.uint8) for view in drawn]
    sizes = list(dict.fromkeys(f"{view.shape[2]}x{view.shape[1]}" for view in drawn))
    caption = (
        f"{len(images)} images and {len(drawn)} views of each, of {' and '.join(sizes)} pixels, as the encoder gets "
        "them: drawn with a fixed seed."
    )
    if lost:
        caption += f" {lost:,} numbers are NaN or infinite, and drawn black."
    for side in SIDES:
        data = _drawn(images, drawn, caption, side)
        if len(data) < BYTES:
            break
    path.write_bytes(data)
    return path


def _drawn(images, views, caption, side):
    largest = max(view.shape[1] for view in views)
    columns = [[scaled(pixels, side) for pixels in images]]
    for view in views:
        picture = [scaled(pixels, side) for pixels in view]
        share = view.shape[1] / largest
        columns.append(
            [p.resize([max(1, round(n * share)) for n in p.size]) for p in picture] if share < 1 else picture
        )
    width, height = columns[1][0].size
    columns[0] = [fitting(picture, width, height) for picture in columns[0]]
    font, small = ImageFont.load_default(13), ImageFont.load_default(12)
    total = 2 * MARGIN + len(columns) * (width + PAD) - PAD + GAP
    lines = wrapped(caption, small, total - 2 * MARGIN)
    top, step = MARGIN + HEAD, height + PAD
    bottom = top + len(images) * step
    canvas = Image.new("RGB", (total, bottom + len(lines) * LINE + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    left = [MARGIN + i * (width + PAD) + (GAP if i else 0) for i in range(len(columns))]
    draw.text((left[0], MARGIN - 3), fitted("image", font, width), INK, font)
    draw.text((left[1], MARGIN - 3), fitted("views", font, total - MARGIN - left[1]), INK, font)
    for x, pictures in zip(left, columns, strict=True):
        for row, picture in enumerate(pictures):
            shift = [(size - own) // 2 for size, own in zip((width, height), picture.size, strict=True)]
            canvas.paste(picture, (x + shift[0], top + row * step + shift[1]))
    for i, line in enumerate(lines):
        draw.text((MARGIN, bottom + i * LINE), line, PALE, small)
    return png(canvas, caption)
