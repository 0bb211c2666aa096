"""A gallery of learned equivalence classes: the images that share one, as a PNG. It knows arrays only."""

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
    as_images,
    check_images,
    check_path,
    fitted,
    png,
    scaled,
    wrapped,
)

__all__ = ["equivalence_classes"]

TEXT = 150  # pixels of the words beside a row


def equivalence_classes(images, classes, path, *, rows=6, per_class=8, pairs=3, class_names=None):
    """Draws the images that share a learned class M̂, and the classes that are confused or merge, into a PNG.

    Three parts, each left out where there is nothing to show. The largest classes of two images and more (of lone ones
    if there are no others): a row each, the most confident images first, with the class's number, its share of all
    images, its mean confidence and, if labels are known, what its images are. The pairs of classes that the encoder
    tells apart worst, some images of each side by side. And the pairs that coarser augmentations merge, drawn the same
    way.

    Args:
        images: uint8 array (N, H, W, C) with 1, 3 or 4 channels, or what looks like one: only images that are drawn
            are read, one at a time.
        classes: `diagnostics.EquivalenceClasses` of these images, or an object with the same attributes.
        path: Where to write the picture; ends in `.png`.
        rows: Integer, classes to show.
        per_class: Integer, images in a row; an even number makes the pairs fill it.
        pairs: Integer, pairs of each kind to show.
        class_names: Sequence of names of the labels (not of the learned classes, which have none).

    Returns:
        The path. What the picture shows is also the PNG's `Description`.

    Raises:
        ValueError: The images are no pictures, or too few for the classes; or there are no classes.

    Example:

    >>> probabilities = np.tile(np.eye(4)[labels], (2, 1, 1))  # (V, N, C): every label a class of its own
    >>> classes = keras_issl.diagnostics.equivalence_classes(probabilities, labels=labels)
    >>> path = keras_issl.report.equivalence_classes(images, classes, "classes.png", rows=4)
    """
    images, path = as_images(images), Path(path)
    check_images(images)
    check_path(path)
    for key, value in {"rows": rows, "per_class": per_class, "pairs": pairs}.items():
        least = 0 if key == "pairs" else 2 if key == "per_class" else 1
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"`{key}` should be an integer of at least {least}. Received: {value!r}.")
    if not classes.classes:
        raise ValueError("`classes` should hold at least one class. Received: none.")
    last = max(int(np.max(one.images)) for one in classes.classes)
    if last >= len(images):
        raise ValueError(f"`classes` should be those of the {len(images):,} images. Received: one of image {last:,}.")
    known = {one.number: one for one in classes.classes}
    shared = {number: one for number, one in known.items() if len(one.images) > 1}
    largest = _class_rows(shared or known, rows, per_class, class_names)
    parts = [("Images that share a class, the most confident first", largest, 0)]
    for title, found, word in (
        ("Classes that are told apart worst", classes.confused, "confused"),
        ("Classes that coarser augmentations merge", classes.merged, "merged"),
    ):
        found = [(a, b, share) for a, b, share in found if a in known and b in known][:pairs]
        found = [_pair_row(known[a], known[b], f"{100 * share:.1f} % {word}", per_class) for a, b, share in found]
        if found:
            parts.append((title, found, per_class // 2))
    caption = f"{len(largest):,} of the {len(known):,} learned classes in use, of {len(images):,} images"
    caption += f"; {len(known) - len(shared):,} of them with a single image." if len(shared) < len(known) else "."
    for side in SIDES:
        data = png(_drawn(images, parts, caption, side, per_class), caption)
        if len(data) < BYTES:
            break
    path.write_bytes(data)
    return path


def _class_rows(known, rows, per_class, names):
    """(lines of text, image indices or `None` for a gap) of each class, the largest first."""
    largest = sorted(known.values(), key=lambda one: -one.share)[:rows]  # stable: ties stay in their order
    return [(_words(one, names), [*map(int, one.images[:per_class])]) for one in largest]


def _words(one, names):
    lines = [
        f"class {one.number}",
        f"{100 * one.share:.1f} % of the images",
        f"{100 * np.mean(one.confidence):.0f} % confident",
    ]
    if one.labels:
        total = sum(one.labels.values())
        common = sorted(one.labels.items(), key=lambda item: -item[1])[:2]
        lines += [f"{100 * count / total:.0f} % {_label(label, names)}" for label, count in common]
    return lines


def _label(label, names):
    is_named = names is not None and isinstance(label, int | np.integer) and 0 <= label < len(names)
    return str(names[label]) if is_named else f"label {label}" if isinstance(label, int | np.integer) else str(label)


def _pair_row(one, other, share, per_class):
    half = per_class // 2
    left, right = ([*map(int, each.images[:half])] for each in (one, other))
    left += [None] * (half - len(left))
    return [f"class {one.number}", f"and class {other.number}", share], [*left, *right]


def _drawn(images, parts, caption, side, columns):
    """The picture of parts: a title, rows of words and indices, and the column before which a gap is, 0 for none."""
    width, height = scaled(np.asarray(images[parts[0][1][0][1][0]]), side).size
    font, small = ImageFont.load_default(13), ImageFont.load_default(12)
    step = max(height, 5 * LINE) + PAD
    total = 2 * MARGIN + TEXT + columns * (width + PAD) - PAD + GAP
    lines = wrapped(caption, small, total - 2 * MARGIN)
    bottom = MARGIN + sum(HEAD + len(rows) * step + GAP for _, rows, _ in parts)
    canvas = Image.new("RGB", (total, bottom + len(lines) * LINE + MARGIN), "white")
    draw, y = ImageDraw.Draw(canvas), MARGIN
    for title, rows, apart in parts:
        draw.text((MARGIN, y - 3), fitted(title, font, total - 2 * MARGIN), INK, font)
        y += HEAD
        for words, indices in rows:
            for i, line in enumerate(words):
                draw.text((MARGIN, y + i * LINE), fitted(line, small, TEXT - PAD), PALE if i else INK, small)
            for column, index in enumerate(indices):
                x = MARGIN + TEXT + column * (width + PAD) + (GAP if apart and column >= apart else 0)
                if index is not None:
                    canvas.paste(scaled(np.asarray(images[index]), side), (x, y))
            y += step
        y += GAP
    for i, line in enumerate(lines):
        draw.text((MARGIN, bottom + i * LINE), line, PALE, small)
    return canvas
