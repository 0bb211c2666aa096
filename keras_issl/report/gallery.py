"""A gallery of nearest neighbours: images and what their features take for alike, as a PNG. It knows arrays only."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

MARGIN, PAD, GAP, HEAD, LINE = 12, 10, 22, 20, 16  # pixels of a gallery: around, between, after the query; text lines
SIDES = (96, 80, 64)  # pixels of a picture's longer side, tried in turn until the file is small
BYTES = 1_000_000
INK, PALE, GREEN, RED = (40, 40, 40), (120, 120, 120), (0, 140, 70), (205, 45, 45)


def neighbours(
    images,
    features,
    path,
    *,
    queries=6,
    neighbours=8,
    seed=0,
    labels=None,
    class_names=None,
    query_indices=None,
    query_images=None,
    query_features=None,
    query_labels=None,
):
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
        query_indices: Integers (Q,): which of `images` are the queries, in this order, instead of drawn ones.
        query_images: Images (Q, H', W', C') that are not among `images`, such as a user's own, to be the queries
            instead; of any size, which needs `query_features` (Q, D), of the same encoder.
        query_features: See there.
        query_labels: Integers (Q,), -1 for none: the labels of `query_images`.

    Returns:
        The path. The text under the rows is also the PNG's `Description`; with labels it says the share of neighbours
        that are of their query's class.

    Raises:
        ValueError: The arguments have other shapes or types, do not belong together, or features are not finite.

    Example:

    >>> path = keras_issl.report.neighbours(images, images.reshape(len(images), -1), "neighbours.png", neighbours=3)
    """
    images = as_images(images)
    features, path = np.asanyarray(features), Path(path)
    labels = np.full(len(images), -1) if labels is None else np.asarray(labels)
    is_own = any(value is not None for value in (query_images, query_features, query_labels))
    is_given = is_own or query_indices is not None
    _check_neighbours(images, features, path, 1 if is_given else queries, neighbours, labels, class_names)
    if is_own:
        asked = _own_queries(features, query_indices, query_images, query_features, query_labels)
        chosen, pictures, asked_features, asked_labels = asked
        if class_names is not None:
            check_names(class_names, asked_labels)
    else:
        if query_indices is not None:
            chosen = _given_queries(query_indices, len(images))
        else:
            chosen = _draw_queries(labels, queries, np.random.default_rng(seed))
        pictures, asked_features, asked_labels = None, features[chosen], labels[chosen]
    name = lambda label: "" if class_names is None or label < 0 else str(class_names[label])  # noqa: E731
    rows, same, known = [], 0, 0
    for row, similarity in enumerate(_cosines(features, asked_features)):
        query, own = chosen[row], asked_labels[row]
        pixels = np.asarray(images[int(query)] if pictures is None else pictures[row])
        label = name(own) or (f"class {own}" if own >= 0 else "")
        rows.append([(pixels, (label,), INK)])
        for i, found in _nearest(images, similarity, query, pixels, neighbours).items():
            frame = None
            if own >= 0 and labels[i] >= 0:
                is_same = labels[i] == own
                frame, same, known = GREEN if is_same else RED, same + int(is_same), known + 1
            rows[-1].append((found, (f"{similarity[i] + 0.0:.2f}", name(labels[i])), frame))
    if is_given:
        number = "1 image" if len(rows) == 1 else f"{len(rows)} images"
        caption = f"{number} asked for, and the nearest of {len(images):,} by cosine similarity."
    else:
        drawn = "at random" if labels.max() < 0 else "from the classes in turn and at random within each"
        caption = f"{queries} of {len(images):,} images, drawn {drawn}, and their nearest by cosine similarity."
    if known:
        caption += f" Green: of the query's class, {same} of {known} ({100 * same / known:.0f} %); red: of another."
    for side in SIDES:
        data = _gallery(rows, caption, side, neighbours + 1)
        if len(data) < BYTES:
            break
    path.write_bytes(data)
    return path


def _check_neighbours(images, features, path, queries, neighbours, labels, class_names):
    check_images(images)
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
    if class_names is not None:
        check_names(class_names, labels)
    check_path(path)


def as_images(images):
    """What looks like an array as it is (it may read its images lazily), anything else as an array."""
    return images if hasattr(images, "shape") and hasattr(images, "dtype") else np.asarray(images)


def check_images(images, name="images"):
    """Raises `ValueError` for what is no batch of uint8 pictures."""
    shape = tuple(images.shape)
    if len(shape) != 4 or images.dtype != np.uint8 or shape[-1] not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            f"`{name}` should be uint8 (N, H, W, C) in 0..255 with 1, 3 or 4 channels. Received: "
            f"{images.dtype} {shape}. Round and convert other numbers; choose three of many channels."
        )


def check_names(class_names, labels):
    """Raises `ValueError` where a label has no name."""
    if len(class_names) <= max(labels, default=-1):
        raise ValueError(
            f"`class_names` should hold a name for every label up to {max(labels)}. Received: {len(class_names)}."
        )


def check_path(path):
    """Raises `ValueError` for a path that is not that of a PNG."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` should end in .png. Received: {str(path)!r}.")


def _given_queries(indices, count):
    indices = np.atleast_1d(np.asarray(indices))
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
        raise ValueError(f"`query_indices` should be integers (Q,). Received: {indices.dtype} {indices.shape}.")
    if indices.min() < 0 or indices.max() >= count:
        raise ValueError(f"`query_indices` should be from 0 to {count - 1:,}. Received: {indices.tolist()}.")
    return indices


def _own_queries(features, indices, images, own, labels):
    """(indices that are none, images, features, labels) of queries that are not among the images."""
    if indices is not None or images is None or own is None:
        raise ValueError("`query_images` and `query_features` should come together, and without `query_indices`.")
    images, own = as_images(images), np.asarray(own)
    check_images(images, "query_images")
    if own.shape != (len(images), features.shape[1]) or own.dtype.kind not in "fiu":
        raise ValueError(
            f"`query_features` should be real numbers ({len(images)}, {features.shape[1]}), a row for each of "
            f"`query_images`, of the encoder behind `features`. Received: {own.dtype} {own.shape}."
        )
    labels = np.full(len(images), -1) if labels is None else np.asarray(labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(f"`query_labels` should be {len(images)} integers. Received: {labels.dtype} {labels.shape}.")
    return [None] * len(images), images, own, labels


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
    """(Q, N) cosine similarities to (Q, D) in float64, from parts of about `numbers` features; of a zero vector 0."""
    step = max(1, numbers // features.shape[1])
    first = _normalised(queries)  # (Q, D)
    parts = (_normalised(features[start : start + step]) for start in range(0, len(features), step))
    return np.concatenate([first @ part.T for part in parts], axis=1)


def _normalised(features):
    features = np.asarray(features, np.float64)
    largest = np.abs(features).max(axis=1, keepdims=True)  # squares of the largest numbers would be infinite
    if not np.isfinite(largest).all():
        raise ValueError("`features` should be finite. Received: NaN or infinity.")
    features = features / np.where(largest, largest, 1.0)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1.0)  # 0, or at least 1


def _nearest(images, similarity, query, pixels, count):
    """Index -> pixels of the `count` most similar images that are no copies of the query's pixels or of each other."""
    found = {}
    for i in np.argsort(-similarity, kind="stable"):
        if len(found) == count:
            break
        if i != query:
            other = np.asarray(images[int(i)])
            if not any(np.array_equal(other, one) for one in (pixels, *found.values())):
                found[i] = other
    return found


def _gallery(rows, caption, side, columns):
    """The bytes of a PNG: rows of (pixels, parts of a text, colour of the frame or `None`), the first of each apart."""
    pictures = [[scaled(pixels, side) for pixels, _, _ in row] for row in rows]
    width, height = next((row[1] for row in pictures if len(row) > 1), pictures[0][0]).size
    pictures = [[fitting(picture, width, height) for picture in row] for row in pictures]
    font, small = ImageFont.load_default(13), ImageFont.load_default(12)
    joint = " " if all(small.getlength(" ".join(parts)) <= width for row in rows for _, parts, _ in row) else "\n"
    label = LINE * (2 if joint == "\n" else 1)
    total = 2 * MARGIN + columns * (width + PAD) - PAD + GAP
    lines = wrapped(caption, small, total - 2 * MARGIN)
    top, step = MARGIN + HEAD, height + label + PAD
    bottom = top + len(rows) * step
    canvas = Image.new("RGB", (total, bottom + len(lines) * LINE + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    left = [MARGIN + i * (width + PAD) + (GAP if i else 0) for i in range(columns)]
    draw.text((left[0], MARGIN - 3), fitted("query", font, width), INK, font)
    draw.text((left[1], MARGIN - 3), fitted("nearest neighbours", font, total - MARGIN - left[1]), INK, font)
    for y, row, shown in zip(range(top, bottom, step), rows, pictures, strict=True):
        for x, picture, (_, parts, frame) in zip(left, shown, row, strict=False):
            if frame:
                draw.rectangle((x - 2, y - 2, x + width + 1, y + height + 1), outline=frame, width=2)
            canvas.paste(picture, (x, y))
            for i, line in enumerate(joint.join(parts).strip().split("\n")):
                line = fitted(line, small, width)
                draw.text((x + (width - small.getlength(line)) / 2, y + height + 3 + i * LINE), line, PALE, small)
    for i, line in enumerate(lines):
        draw.text((MARGIN, bottom + i * LINE), line, PALE, small)
    return png(canvas, caption)


def png(picture, description):
    """The bytes of a PNG that says what it shows."""
    about, file = PngImagePlugin.PngInfo(), io.BytesIO()
    about.add_text("Description", description)
    picture.save(file, "PNG", optimize=True, pnginfo=about)
    return file.getvalue()


def scaled(pixels, side):
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


def fitting(picture, width, height):
    """A picture, on white and smaller or larger if it has another size than its neighbours."""
    return picture if picture.size == (width, height) else ImageOps.pad(picture, (width, height), color="white")


def fitted(text, font, width):
    """Text on one line, cut to a width in pixels: after a word if that leaves half of it, and with an ellipsis."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    words = text[: text.rfind(" ") + 1]
    text = (words if 2 * len(words) > len(text) else text).rstrip(" ,;:.-–([{/")
    return text + "…" if text else ""


def wrapped(text, font, width):
    """Lines of words, each at most `width` pixels wide where its words are."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
    return lines
