"""Pictures for a place inside HTML: a PNG as data, SVG made safe."""

import base64
import html
import re
import struct
from xml.etree import ElementTree

from keras_issl.report.words import clean

__all__ = ["embedded_png", "embedded_svg"]

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
SHAPES = "path rect circle ellipse line polyline polygon image text tspan"
ELEMENTS = frozenset(f"svg g defs use clipPath title desc {SHAPES}".split())


def embedded_png(data, alt):
    """An `<img>` that holds the bytes of a PNG.

    Raises:
        ValueError: The bytes are no PNG.

    Example:

    >>> from keras_issl.report.embedding import embedded_png
    >>> path = keras_issl.report.neighbours(images, images.reshape(len(images), -1), "neighbours.png", neighbours=3)
    >>> embedded_png(path.read_bytes(), alt="neighbours")[:32]
    '<img src="data:image/png;base64,'
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) < 24:
        raise ValueError(f"`picture` should be SVG text, a PNG's bytes or the path of either. Received: {data[:8]!r}.")
    width, height = struct.unpack(">II", data[16:24])
    source = base64.b64encode(data).decode()
    return (
        f'<img src="data:image/png;base64,{source}" width="{width}" height="{height}" alt="{html.escape(clean(alt))}">'
    )


def embedded_svg(svg, alt, prefix):
    """SVG for a place inside HTML: its ids made unique by a prefix, nothing in it that could run or load.

    Raises:
        ValueError: Text that is no SVG, or SVG with more than shapes and text.

    Example:

    >>> from keras_issl.report.embedding import embedded_svg
    >>> embedded_svg('<svg xmlns="http://www.w3.org/2000/svg"><g id="a"/></svg>', alt="nothing", prefix="f1-")
    '<svg role="img" aria-label="nothing"><g id="f1-a" /></svg>'
    """
    try:
        if "<!DOCTYPE" in svg or "<!ENTITY" in svg:
            raise ElementTree.ParseError("a document type")
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"`picture` should be well-formed SVG without a document type. Received: {error}.") from None
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in (SVG + "metadata", SVG + "style", "metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        if element.tag not in ELEMENTS or (element is root) != (element.tag == "svg"):
            raise ValueError(f"`picture` should hold nothing but shapes and text. Received: <{element.tag}>.")
        for key in list(element.attrib):
            value, name = element.attrib.pop(key), key.removeprefix(XLINK)
            outside = name in ("href", "src") and not re.match("#|data:image/png;base64,", value)
            if outside or re.search(r"url\((?!#)", value) or name.startswith(("{", "on")):
                raise ValueError(f"`picture` should not run or load anything. Received: {name}={value[:80]!r}.")
            if name == "id":
                value = prefix + value
            elif name == "href" and value.startswith("#"):
                value = f"#{prefix}{value[1:]}"
            element.set(name, re.sub(r"url\(#", f"url(#{prefix}", value))
    for key in ("width", "height"):  # points: 4/3 of a pixel each
        if match := re.fullmatch(r"([\d.]+)pt", root.get(key, "")):
            root.set(key, f"{float(match[1]) * 4 / 3:.0f}")
    root.set("role", "img")
    root.set("aria-label", clean(alt))
    return ElementTree.tostring(root, encoding="unicode")
