"""Galleries of nearest neighbours and of classes: who stands where, pixel for pixel, and what is refused."""

import types

import numpy as np
import pytest
from PIL import Image, ImageFont

from keras_issl import diagnostics, report
from keras_issl.report import class_gallery, gallery

pytestmark = pytest.mark.backend_independent


def plain(colors, height=32, width=32):
    """(N, H, W, 3) images of one colour each."""
    return np.broadcast_to(np.asarray(colors, "uint8")[:, None, None, :], (len(colors), height, width, 3)).copy()


def distinct(count):
    """Images whose colour says which they are: (N, 32, 32, 3)."""
    return plain([(i // 16 * 10, i % 16 * 15, 200) for i in range(count)])


def opened(path):
    """A picture, its file closed."""
    with Image.open(path) as picture:
        picture.load()
    return picture


def read(path, images, columns):
    """Indices of the images that a gallery of `distinct` ones shows, a list a row; what is blank is left out."""
    picture = np.asarray(opened(path))
    number = {tuple(image[0, 0]): i for i, image in enumerate(images)}
    height, width = (96 // max(images.shape[1:3]) * side for side in images.shape[1:3])
    step = height + gallery.LINE + gallery.PAD
    rows = []
    for top in range(gallery.MARGIN + gallery.HEAD, picture.shape[0] - height, step):
        lefts = [gallery.MARGIN + i * (width + gallery.PAD) + (gallery.GAP if i else 0) for i in range(columns)]
        cells = [picture[top : top + height, left : left + width].reshape(-1, 3) for left in lefts]
        if (cells[0] == 255).all():
            break
        rows.append([number[tuple(cell[0])] for cell in cells if not (cell == 255).all()])
        assert all((cell == cell[0]).all() for cell in cells)  # nothing is drawn over a picture
    return rows


def frame(path, row, column, size=96):
    """The colour of the frame at a place, white if there is none."""
    picture = np.asarray(opened(path))
    y = gallery.MARGIN + gallery.HEAD + row * (size + gallery.LINE + gallery.PAD)
    x = gallery.MARGIN + column * (size + gallery.PAD) + (gallery.GAP if column else 0)
    colors = {tuple(int(v) for v in picture[place]) for place in ((y - 1, x + 5), (y + 5, x - 2), (y + 5, x + size))}
    assert len(colors) == 1
    return colors.pop()


def test_neighbours_are_those_of_the_cluster_in_order(tmp_path):
    angles = np.concatenate([center + np.array([0, 1, 3, 7, 15]) for center in (0, 120, 240)])  # distinct distances
    lengths = np.linspace(0.1, 50, 15)[::-1]  # which cosines do not see
    features = lengths[:, None] * np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)
    images = distinct(15)
    path = report.neighbours(images, features, tmp_path / "a.png", queries=15, neighbours=4)
    rows = read(path, images, 5)
    assert sorted(row[0] for row in rows) == list(range(15))  # every image is a query once
    for query, *row in rows:
        expected = sorted(set(range(15)) - {query}, key=lambda i: np.cos(np.radians(angles[i] - angles[query])))[::-1]
        assert row == expected[:4]
        assert {i // 5 for i in row} == {query // 5}


def test_parts_give_the_whole_matrix(rng):
    features = rng.normal(size=(57, 7)).astype("float32")
    features[3] = 0
    wide = features.astype("float64")
    norms = np.linalg.norm(wide, axis=1)
    expected = (wide[[5, 3, 50]] @ wide.T) / np.where(norms, norms, 1) / np.where(norms, norms, 1)[[5, 3, 50], None]
    for numbers in (1, 7, 70, 10**6):
        np.testing.assert_allclose(gallery._cosines(features, features[[5, 3, 50]], numbers), expected, atol=1e-15)
    assert (expected[1] == 0).all()


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_features_of_any_size(scale):
    features = scale * np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(gallery._cosines(features, features[:1]), [[1, np.sqrt(0.5), -1]], rtol=1e-12)


def test_copies_of_an_image_are_shown_once(tmp_path):
    images = distinct(12)
    images[1:5], images[7] = images[0], images[6]
    features = np.ones((12, 3)) + 1e-3 * np.arange(12)[:, None] * [0, 0, 1]
    features[1:5], features[7] = features[0], features[6]
    path = report.neighbours(images, features, tmp_path / "a.png", queries=12, neighbours=11)
    rows = {tuple(images[row[0]][0, 0]): row for row in read(path, images, 12)}
    for row in rows.values():
        assert len(row) == 7 and len({tuple(images[i][0, 0]) for i in row}) == 7  # 12 images, 7 different ones
    assert [tuple(images[i][0, 0]) for i in rows[tuple(images[0][0, 0])]] == [
        tuple(images[i][0, 0]) for i in (0, 5, 6, 8, 9, 10, 11)
    ]


def test_a_collapsed_encoder_shows_itself(tmp_path):
    images = distinct(200)  # equal sizes are kept in order only by a stable sort
    path = report.neighbours(images, np.ones((200, 4)), tmp_path / "a.png", queries=9, neighbours=3)
    for query, *row in read(path, images, 4):  # all are equally near: the first ones
        assert row == [i for i in range(4) if i != query][:3]


def test_frames_say_whose_class_it_is(tmp_path):
    features = np.array([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [0, 1], [0.1, 1]])
    labels = np.array([4, 4, 7, -1, 7, 7])
    images = distinct(6)
    path = report.neighbours(images, features, tmp_path / "a.png", queries=5, neighbours=3, labels=labels)
    rows = read(path, images, 4)
    assert [labels[row[0]] for row in rows] == [4, 4, 7, 7, 7]  # never the one without a label, in the classes' order
    same = known = 0
    for r, (query, *row) in enumerate(rows):
        assert frame(path, r, 0) == gallery.INK
        for column, i in enumerate(row, 1):
            expected = (255, 255, 255)
            if labels[i] >= 0:
                expected, known = (gallery.GREEN if labels[i] == labels[query] else gallery.RED), known + 1
                same += labels[i] == labels[query]
            assert frame(path, r, column) == expected
    said = opened(path).text["Description"]
    assert said.startswith("5 of 6 images, drawn from the classes in turn and at random within each, and ")
    assert f"{same} of {known} (" in said
    path = report.neighbours(images, features, tmp_path / "b.png", queries=5, neighbours=3)
    assert frame(path, 0, 0) == gallery.INK and frame(path, 0, 1) == (255, 255, 255)
    assert opened(path).text["Description"] == "5 of 6 images, drawn at random, and their nearest by cosine similarity."


def test_queries_come_from_every_class_and_from_the_seed(tmp_path, rng):
    labels = np.array([0] * 80 + [1] * 5 + [2] * 5)
    images, features = distinct(90), rng.normal(size=(90, 4))
    draw = lambda **more: [  # noqa: E731
        row[0] for row in read(report.neighbours(images, features, tmp_path / "a.png", **more), images, 9)
    ]
    chosen = draw(labels=labels)
    assert [labels[i] for i in chosen] == [0, 0, 1, 1, 2, 2] and len(set(chosen)) == 6
    assert draw(labels=labels) == chosen != draw(labels=labels, seed=1)
    assert len(set(draw())) == 6 and draw() == draw() != draw(seed=1)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((8, 8, 3), (96, 96)),
        ((28, 28, 1), (84, 84)),
        ((32, 16, 3), (96, 48)),
        ((49, 49, 3), (98, 98)),
        ((64, 64, 4), (64, 64)),
        ((100, 250, 3), (38, 96)),
        ((3, 1000, 3), (1, 96)),
    ],
)
def test_sizes(shape, shown, tmp_path, rng):
    images = rng.integers(0, 256, (4, *shape)).astype("uint8")
    path = report.neighbours(images, np.eye(4), tmp_path / "a.png", queries=2, neighbours=3)
    height, width = shown
    picture = opened(path)
    assert picture.format == "PNG" and picture.mode == "RGB"
    assert picture.width == 2 * gallery.MARGIN + gallery.GAP + 4 * width + 3 * gallery.PAD
    rest = picture.height - 2 * gallery.MARGIN - gallery.HEAD - 2 * (height + gallery.LINE + gallery.PAD)
    assert rest > 0 and rest % gallery.LINE == 0  # the text under the rows
    assert not (np.asarray(picture)[-gallery.MARGIN :] < 255).any()


def test_small_images_keep_their_pixels(tmp_path, rng):
    images = rng.integers(0, 256, (3, 8, 5, 3)).astype("uint8")
    images[:, 0, 0] = [[10, 0, 0], [20, 0, 0], [30, 0, 0]]
    path = report.neighbours(images, np.eye(3), tmp_path / "a.png", queries=1, neighbours=2)
    picture = np.asarray(opened(path))
    found = []
    for column in range(3):
        x = gallery.MARGIN + column * (60 + gallery.PAD) + (gallery.GAP if column else 0)
        y = gallery.MARGIN + gallery.HEAD
        cell = picture[y : y + 96, x : x + 60]
        found.append(cell[0, 0, 0] // 10 - 1)
        np.testing.assert_array_equal(cell, images[found[-1]].repeat(12, axis=0).repeat(12, axis=1))
    assert sorted(found) == [0, 1, 2]


def test_gray_and_transparent_images(tmp_path):
    gray = np.arange(1, 5, dtype="uint8").reshape(4, 1, 1, 1) * np.full((32, 32, 1), 50, "uint8")
    path = report.neighbours(gray, np.eye(4), tmp_path / "a.png", queries=4, neighbours=3)
    assert [len(row) for row in read(path, gray.repeat(3, axis=-1), 4)] == [4] * 4
    clear = np.concatenate([distinct(4), np.full((4, 32, 32, 1), 255, "uint8")], axis=-1)
    path = report.neighbours(clear, np.eye(4), tmp_path / "a.png", queries=4, neighbours=3)
    assert [len(row) for row in read(path, distinct(4), 4)] == [4] * 4
    clear[..., 3] = 0  # nothing but the white below
    rows = read(report.neighbours(clear, np.eye(4), tmp_path / "a.png", queries=4, neighbours=3), distinct(4), 4)
    assert rows == []


def test_files_stay_small(tmp_path, rng):
    noise = rng.integers(0, 256, (20, 150, 150, 3)).astype("uint8")
    path = report.neighbours(noise, rng.normal(size=(20, 4)), tmp_path / "a.png")
    assert path.stat().st_size < gallery.BYTES
    assert opened(path).width == 2 * gallery.MARGIN + gallery.GAP + 9 * 64 + 8 * gallery.PAD  # the smallest side


def test_names_of_classes_are_text(tmp_path, rng):
    names = ["a\nb\x00", "\ud800 עברית 🙂", "x" * 500, ""]
    images, labels = distinct(8), np.arange(8) % 4
    path = report.neighbours(
        images, rng.normal(size=(8, 2)), tmp_path / "a.png", neighbours=3, labels=labels, class_names=names
    )
    assert opened(path).width == 2 * gallery.MARGIN + gallery.GAP + 4 * 96 + 3 * gallery.PAD
    beside = np.asarray(opened(path))[:, gallery.MARGIN + 96 + gallery.PAD : gallery.MARGIN + 96 + gallery.GAP]
    assert (beside[: 3 * 96] == 255).all()  # long names are cut, not written over what is next


class Lazy:
    """An array that reads one image when it is asked for one, and counts."""

    dtype, ndim = np.dtype("uint8"), 4

    def __init__(self, images):
        self.images, self.read, self.shape = images, [], images.shape

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        assert isinstance(index, int)
        self.read.append(index)
        return self.images[index]


def test_only_what_is_drawn_is_read(tmp_path, rng):
    images, features = distinct(200), rng.normal(size=(200, 16))
    lazy = Lazy(images)
    path = report.neighbours(lazy, features, tmp_path / "a.png", queries=3, neighbours=5)
    assert len(lazy.read) == 3 * 6
    other = report.neighbours(images, features.astype("float16").astype("float64"), tmp_path / "b.png")
    np.save(tmp_path / "f.npy", features)
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    again = report.neighbours(images, mapped, str(tmp_path / "c.png"), queries=3, neighbours=5)
    assert again.read_bytes() == path.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 3))}, "`images` should be uint8"),
        ({"images": np.zeros((4, 8, 8), "uint8")}, "`images` should be uint8"),
        ({"images": np.zeros((4, 8, 8, 2), "uint8")}, "`images` should be uint8"),
        ({"images": np.zeros((4, 0, 8, 3), "uint8")}, "`images` should be uint8"),
        ({"images": [[1]]}, "`images` should be uint8"),
        ({"features": np.zeros((3, 2))}, "`features` should be real numbers .*4 images"),
        ({"features": np.zeros(4)}, "`features` should be real numbers"),
        ({"features": np.zeros((4, 0))}, "`features` should be real numbers"),
        ({"features": np.zeros((4, 2), complex)}, "`features` should be real numbers"),
        ({"features": np.array([[1.0], [np.nan], [1.0], [1.0]])}, "`features` should be finite"),
        ({"features": np.array([[1.0], [1.0], [1.0], [np.inf]])}, "`features` should be finite"),
        ({"queries": 0}, "`queries` should be a positive integer"),
        ({"queries": 5}, "`queries` should be at most .* 4"),
        ({"queries": True}, "`queries` should be a positive integer"),
        ({"neighbours": 2.0}, "`neighbours` should be a positive integer"),
        ({"neighbours": 4}, "`neighbours` should be less than the number of images, 4"),
        ({"labels": [0, 1, 2]}, "`labels` should be 4 integers"),
        ({"labels": [0.0, 1, 2, 3]}, "`labels` should be 4 integers"),
        ({"labels": [0, 1, -1, -1], "queries": 3}, "`queries` should be at most .*: 2"),
        ({"labels": [0, 1, 2, 3], "class_names": ["a", "b", "c"]}, "`class_names` should hold a name for every label"),
        ({"path": "a.jpg"}, "`path` should end in .png"),
    ],
)
def test_what_is_refused_leaves_the_old_picture(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"old")
    arguments = {"images": distinct(4), "features": np.eye(4), "path": "a.png", "queries": 2, "neighbours": 2} | change
    with pytest.raises(ValueError, match=message):
        report.neighbours(**arguments)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"old"}


def test_queries_can_be_chosen(tmp_path, rng):
    images, features, labels = distinct(20), rng.normal(size=(20, 4)), np.arange(20) % 3
    path = report.neighbours(images, features, tmp_path / "a.png", query_indices=[7, 3], neighbours=4, labels=labels)
    rows = read(path, images, 5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for query, (first, *row) in zip([7, 3], rows, strict=True):
        assert first == query
        assert row == [i for i in np.argsort(-unit @ unit[query], kind="stable") if i != query][:4]
    assert opened(path).text["Description"].startswith("2 images asked for, and the nearest of 20 by cosine similarity")


def test_a_users_own_images_can_be_queries(tmp_path, rng):
    images, features = distinct(20), rng.normal(size=(20, 4))
    own = plain([(250, 1, 2), (3, 250, 4)], height=64, width=16)  # of another size than the others
    asked = features[[11, 5]] + 1e-3
    path = report.neighbours(
        images, features, tmp_path / "a.png", neighbours=3, labels=np.arange(20) % 2, query_images=own,
        query_features=asked, query_labels=[1, -1],
    )  # fmt: skip
    picture = np.asarray(opened(path))
    top, height = gallery.MARGIN + gallery.HEAD, 96 + gallery.LINE + gallery.PAD
    for row, color in enumerate([(250, 1, 2), (3, 250, 4)]):
        cell = picture[top + row * height : top + row * height + 96, gallery.MARGIN : gallery.MARGIN + 96]
        assert (cell[48, 48] == color).all() and (cell[:, :8] == 255).all()  # whole, on white, in the middle
    x = gallery.MARGIN + 96 + gallery.PAD + gallery.GAP
    nearest = [picture[top + row * height + 5, x + 5] for row in (0, 1)]
    assert [tuple(color) for color in nearest] == [tuple(images[i][0, 0]) for i in (11, 5)]  # itself is not left out
    assert frame(path, 0, 1) == gallery.GREEN and frame(path, 1, 1) == (255, 255, 255)
    copy = report.neighbours(
        images, features, tmp_path / "b.png", neighbours=3, query_images=images[11:12], query_features=features[11:12]
    )
    assert 11 not in read(copy, images, 4)[0][1:]  # a copy of what was asked for shows nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_indices": [4]}, "`query_indices` should be from 0 to 3"),
        ({"query_indices": [-1]}, "`query_indices` should be from 0 to 3"),
        ({"query_indices": [0.5]}, "`query_indices` should be integers"),
        ({"query_indices": []}, "`query_indices` should be integers"),
        ({"query_images": distinct(1)}, "`query_images` and `query_features` should come together"),
        ({"query_features": np.eye(4)}, "`query_images` and `query_features` should come together"),
        (
            {"query_images": distinct(1), "query_features": np.eye(4)},
            r"`query_features` should be real numbers \(1, 4\)",
        ),
        ({"query_images": distinct(4) / 1.0, "query_features": np.eye(4)}, "`query_images` should be uint8"),
        ({"query_images": distinct(4), "query_features": np.eye(4) * np.nan}, "`features` should be finite"),
        ({"query_images": distinct(4), "query_features": np.eye(4), "query_labels": [1]}, "`query_labels` should be 4"),
    ],
)
def test_queries_that_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        report.neighbours(distinct(4), np.eye(4), tmp_path / "a.png", neighbours=2, **change)
    assert not list(tmp_path.iterdir())


def group(number, images, share, labels=None):
    confidence = np.linspace(0.9, 0.5, len(images))
    return types.SimpleNamespace(
        number=number, images=np.array(images), confidence=confidence, share=share, labels=labels
    )


CLASSES = types.SimpleNamespace(
    classes=(group(5, [8, 2, 4], 0.3), group(2, [1, 9, 3, 7, 0], 0.5, {0: 4, 3: 1}), group(9, [6], 0.1)),
    confused=((2, 5, 0.25), (5, 77, 0.2)),
    merged=((5, 9, 0.125),),
)


def places(path, images, top, columns, apart=0):
    """Indices of the images in a row of a gallery of classes, `None` where there is none."""
    picture, number = np.asarray(opened(path)), {tuple(image[0, 0]): i for i, image in enumerate(images)}
    found = []
    for column in range(columns):
        x = gallery.MARGIN + class_gallery.TEXT + column * (96 + gallery.PAD)
        cell = picture[top : top + 96, x + (gallery.GAP if apart and column >= apart else 0) :][:, :96].reshape(-1, 3)
        assert (cell == cell[0]).all()  # nothing is drawn over a picture
        found.append(None if (cell == 255).all() else number[tuple(cell[0])])
    return found


def test_classes_are_shown_with_their_images_and_pairs(tmp_path):
    images, step = distinct(10), 96 + gallery.PAD
    path = report.equivalence_classes(images, CLASSES, tmp_path / "a.png", rows=2, per_class=4)
    top = gallery.MARGIN + gallery.HEAD
    assert places(path, images, top, 4) == [1, 9, 3, 7]  # the largest class first, the most confident image first
    assert places(path, images, top + step, 4) == [8, 2, 4, None]
    top += 2 * step + gallery.GAP + gallery.HEAD
    assert places(path, images, top, 4, apart=2) == [1, 9, 8, 2]  # the pair with an unused class is left out
    top += step + gallery.GAP + gallery.HEAD
    assert places(path, images, top, 4, apart=2) == [8, 2, 6, None]
    bottom = top + step + gallery.GAP + gallery.LINE + gallery.MARGIN
    picture = opened(path)
    assert picture.height == bottom
    assert picture.text["Description"] == (
        "2 of the 3 learned classes in use, of 10 images; 1 of them with a single image."
    )
    lazy = Lazy(images)
    again = report.equivalence_classes(lazy, CLASSES, tmp_path / "b.png", rows=2, per_class=4)
    assert again.read_bytes() == path.read_bytes() and set(lazy.read) <= set(range(10)) - {0}


def test_lone_images_are_shown_where_there_is_nothing_else(tmp_path):
    images, top = distinct(10), gallery.MARGIN + gallery.HEAD
    path = report.equivalence_classes(images, CLASSES, tmp_path / "a.png", rows=9, per_class=4, pairs=0)
    below = gallery.GAP + gallery.LINE + gallery.MARGIN
    assert opened(path).height == top + 2 * (96 + gallery.PAD) + below  # two rows: the lone image has none
    lone = types.SimpleNamespace(classes=(group(3, [4], 0.1), group(1, [2], 0.1)), confused=(), merged=())
    path = report.equivalence_classes(images, lone, tmp_path / "b.png", per_class=2)
    assert [places(path, images, y, 2) for y in (top, top + 96 + gallery.PAD)] == [[4, None], [2, None]]
    assert "; 2 of them with a single image." in opened(path).text["Description"]


def test_names_are_shortened_after_a_word():
    font = ImageFont.load_default(12)
    assert gallery.fitted("cat", font, 96) == "cat"
    assert gallery.fitted("a great grey wolf and pups", font, 96) == "a great grey…"
    assert gallery.fitted("A<script>alert(1)</script>", font, 96) == "A<script>alert…"
    assert gallery.fitted("an immeasurablylongword", font, 96).startswith("an immeasur")
    assert gallery.fitted("wide", font, 3) == ""


def test_classes_say_what_they_hold():
    words = class_gallery._words(CLASSES.classes[1], ["cat", "dog"])
    assert words == ["class 2", "50.0 % of the images", "70 % confident", "80 % cat", "20 % label 3"]
    assert class_gallery._words(CLASSES.classes[0], None) == ["class 5", "30.0 % of the images", "70 % confident"]


def test_galleries_of_classes_are_of_real_ones_and_small(tmp_path, rng):
    probabilities = np.tile(np.eye(4)[np.arange(40) % 4], (2, 1, 1))
    found = diagnostics.equivalence_classes(probabilities, labels=np.arange(40) % 2)
    noise = rng.integers(0, 256, (40, 100, 140, 3)).astype("uint8")
    path = report.equivalence_classes(noise, found, tmp_path / "a.png", rows=4, class_names=["<b>\n", "\ud800"])
    assert path.stat().st_size < gallery.BYTES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((10, 8, 8))}, "`images` should be uint8"),
        ({"images": distinct(8)}, "`classes` should be those of the 8 images. Received: one of image 9"),
        ({"classes": types.SimpleNamespace(classes=(), confused=(), merged=())}, "`classes` should hold at least one"),
        ({"rows": 0}, "`rows` should be an integer of at least 1"),
        ({"per_class": 1}, "`per_class` should be an integer of at least 2"),
        ({"pairs": -1}, "`pairs` should be an integer of at least 0"),
        ({"path": "a.gif"}, "`path` should end in .png"),
    ],
)
def test_galleries_of_classes_that_are_refused(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        report.equivalence_classes(**{"images": distinct(10), "classes": CLASSES, "path": "a.png"} | change)
    assert not list(tmp_path.iterdir())
