"""A gallery of nearest neighbours: images and what their features take for alike, as a PNG. It knows arrays only."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

MARGIN, PAD, GAP, HEAD, LINE = 12, 10, 22, 20, 16  # pixels of a gallery: around, between, after the query; text lines
SIDES = (96, 80, 64)  # pixels of a picture's longer side, tried in turn until the file is small
BYTES = 1_000_000
INK, PALE, GREEN, RED = (40, 40, 40), (120, 120, 120), (0, 140, 70), (205, 45, 45)


def neighbours(images, features, path, *, queries=6, neighbours=8, seed=0, labels=None, class_names=None):
    """Draws images and what is nearest to them in the space of their features, into a PNG.

    Each row begins with a query; after a gap follow its nearest neighbours by cosine similarity, nearest first, with
    the similarity under each. The query is never among them, and neither are copies: of images with the same pixels a
    row holds one, so it may be shorter than `neighbours`. (Images whose features alone are equal are all shown: that
    is what a collapsed encoder looks like.) Ties go to the image that comes first.

    Small images are enlarged by a whole factor, to about 96 pixels and at least 64, large ones shrunk to 96, or down
    to 64 until the file has less than a megabyte.

    Args:
        images: uint8 array (N, H, W, C) with 1, 3 or 4 channels (the fourth is opacity, over white), or what looks
            like one, such as the `images` of a dataset: only the images that are drawn are read, one at a time.
        features: Array (N, D), the features of the images. They are read in parts, so they may be mapped from a file.
        path: Where to write the picture; ends in `.png`.
        queries: Integer, rows. They are drawn at random; if there are labels, from the classes in turn and at random
            within each.
        neighbours: Integer, pictures in a row beside the query.
        seed: Integer, seed of the draw.
        labels: Integers (N,), -1 for none. Neighbours of the query's class get a green frame, others a red one.
        class_names: Sequence of names, to be written under the pictures in place of the labels.

    Returns:
        The path. The text under the rows is also the PNG's `Description`; with labels it says the share of neighbours
        that are of their query's class.

    Raises:
        ValueError: The arguments have other shapes or types, do not belong together, or features are not finite.

    Example:

    >>> path = keras_issl.report.neighbours(images, images.reshape(len(images), -1), "neighbours.png", neighbours=3)
    """
    images = images if hasattr(images, "shape") and hasattr(images, "dtype") else np.asarray(images)
    features, path = np.asanyarray(features), Path(path)
    labels = np.full(len(images), -1) if labels is None else np.asarray(labels)
    _check_neighbours(images, features, path, queries, neighbours, labels, class_names)
    chosen = _draw_queries(labels, queries, np.random.default_rng(seed))
    name = (lambda i: "") if class_names is None else (lambda i: str(class_names[labels[i]]) if labels[i] >= 0 else "")
    rows, same, known = [], 0, 0
    for query, similarity in zip(chosen, _cosines(features, chosen), strict=True):
        found = _nearest(images, similarity, query, neighbours)
        label = name(query) or (f"class {labels[query]}" if labels[query] >= 0 else "")
        rows.append([(found.pop(query), (label,), INK)])
        for i, pixels in found.items():
            frame = None
            if labels[query] >= 0 and labels[i] >= 0:
                is_same = labels[i] == labels[query]
                frame, same, known = GREEN if is_same else RED, same + int(is_same), known + 1
            rows[-1].append((pixels, (f"{similarity[i] + 0.0:.2f}", name(i)), frame))
    drawn = "at random" if labels.max() < 0 else "from the classes in turn and at random within each"
    caption = f"{queries} of {len(images):,} images, drawn {drawn}, and their nearest by cosine similarity."
    if known:
        caption += f" Green: of the query's class, {same} of {known} ({same / known:.0%}); red: of another."
    for side in SIDES:
        data = _gallery(rows, caption, side, neighbours + 1)
        if len(data) < BYTES:
            break
    path.write_bytes(data)
    return path


def _check_neighbours(images, features, path, queries, neighbours, labels, class_names):
    shape = tuple(images.shape)
    if len(shape) != 4 or images.dtype != np.uint8 or shape[-1] not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            "`images` should be uint8 (N, H, W, C) in 0..255 with 1, 3 or 4 channels. Received: "
            f"{images.dtype} {shape}. Round and convert other numbers; choose three of many channels."
        )
    if features.ndim != 2 or len(features) != len(images) or 0 in features.shape or features.dtype.kind not in "fiu":
        raise ValueError(
            f"`features` should be real numbers (N, D), a row for each of the {len(images):,} images. Received: "
            f"{features.dtype} {features.shape}."
        )
    for key, value in {"queries": queries, "neighbours": neighbours}.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{key}` should be a positive integer. Received: {value!r}.")
    if neighbours >= len(images):
        raise ValueError(
            f"`neighbours` should be less than the number of images, {len(images):,}. Received: {neighbours}."
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` should be {len(images):,} integers, one an image, -1 for none. Received: {labels.dtype} "
            f"{labels.shape}."
        )
    available = int(np.sum(labels >= 0)) or len(images)
    if queries > available:
        raise ValueError(
            f"`queries` should be at most the number of images, of those with labels where there are any: "
            f"{available:,}. Received: {queries}."
        )
    if class_names is not None and len(class_names) <= labels.max():
        raise ValueError(
            f"`class_names` should hold a name for every label up to {labels.max()}. Received: {len(class_names)}."
        )
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` should end in .png. Received: {str(path)!r}.")


def _draw_queries(labels, count, rng):
    """`count` different indices at random; of labelled ones from the classes in turn, and in the classes' order."""
    shuffled = rng.permutation(len(labels))
    if labels.max() < 0:
        return shuffled[:count]
    classes = [shuffled[labels[shuffled] == c] for c in rng.permutation(np.unique(labels[labels >= 0]))]
    turns = [(turn, i) for members in classes for turn, i in enumerate(members)]
    chosen = [i for _, i in sorted(turns, key=lambda pair: pair[0])[:count]]  # stable: a class after the other
    return np.array(sorted(chosen, key=lambda i: labels[i]))


def _cosines(features, queries, numbers=1 << 22):
    """(Q, N) cosine similarities in float64, from parts of about `numbers` features; of a zero vector 0."""
    step = max(1, numbers // features.shape[1])
    first = _normalised(features[queries])  # (Q, D)
    parts = (_normalised(features[start : start + step]) for start in range(0, len(features), step))
    return np.concatenate([first @ part.T for part in parts], axis=1)


def _normalised(features):
    features = np.asarray(features, np.float64)
    largest = np.abs(features).max(axis=1, keepdims=True)  # squares of the largest numbers would be infinite
    if not np.isfinite(largest).all():
        raise ValueError("`features` should be finite. Received: NaN or infinity.")
    features = features / np.where(largest, largest, 1.0)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1.0)  # 0, or at least 1


def _nearest(images, similarity, query, count):
    """Index -> pixels of the query and of the `count` most similar images that are no copies of it or of each other."""
    found = {query: np.asarray(images[int(query)])}
    for i in np.argsort(-similarity, kind="stable"):
        if len(found) > count:
            break
        if i != query:
            pixels = np.asarray(images[int(i)])
            if not any(np.array_equal(pixels, other) for other in found.values()):
                found[i] = pixels
    return found


def _gallery(rows, caption, side, columns):
    """The bytes of a PNG: rows of (pixels, parts of a text, colour of the frame or `None`), the first of each apart."""
    pictures = [[_scaled(pixels, side) for pixels, _, _ in row] for row in rows]
    width, height = pictures[0][0].size
    font, small = ImageFont.load_default(13), ImageFont.load_default(12)
    joint = " " if all(small.getlength(" ".join(parts)) <= width for row in rows for _, parts, _ in row) else "\n"
    label = LINE * (2 if joint == "\n" else 1)
    total = 2 * MARGIN + columns * (width + PAD) - PAD + GAP
    lines = _wrapped(caption, small, total - 2 * MARGIN)
    top, step = MARGIN + HEAD, height + label + PAD
    bottom = top + len(rows) * step
    canvas = Image.new("RGB", (total, bottom + len(lines) * LINE + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    left = [MARGIN + i * (width + PAD) + (GAP if i else 0) for i in range(columns)]
    draw.text((left[0], MARGIN - 3), _fitted("query", font, width), INK, font)
    draw.text((left[1], MARGIN - 3), _fitted("nearest neighbours", font, total - MARGIN - left[1]), INK, font)
    for y, row, shown in zip(range(top, bottom, step), rows, pictures, strict=True):
        for x, picture, (_, parts, frame) in zip(left, shown, row, strict=False):
            if frame:
                draw.rectangle((x - 2, y - 2, x + width + 1, y + height + 1), outline=frame, width=2)
            canvas.paste(picture, (x, y))
            for i, line in enumerate(joint.join(parts).strip().split("\n")):
                line = _fitted(line, small, width)
                draw.text((x + (width - small.getlength(line)) / 2, y + height + 3 + i * LINE), line, PALE, small)
    for i, line in enumerate(lines):
        draw.text((MARGIN, bottom + i * LINE), line, PALE, small)
    about, file = PngImagePlugin.PngInfo(), io.BytesIO()
    about.add_text("Description", caption)
    canvas.save(file, "PNG", optimize=True, pnginfo=about)
    return file.getvalue()


def _scaled(pixels, side):
    """A picture in its proportions: enlarged by a whole factor to about `side` and at least 64, or shrunk to `side`."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture, longest = picture.convert("RGB"), max(picture.size)
    if longest > side:
        size = [max(1, round(length * side / longest)) for length in picture.size]
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = max(side // longest, math.ceil(64 / longest))
    return picture.resize([length * factor for length in picture.size], Image.Resampling.NEAREST)


def _fitted(text, font, width):
    """Text on one line, cut to a width in pixels."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""


def _wrapped(text, font, width):
    """Lines of words, each at most `width` pixels wide where its words are."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
    return lines
