"""Galleries of nearest neighbours: who stands where, pixel for pixel, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from keras_issl import gallery, report

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
        np.testing.assert_allclose(gallery._cosines(features, np.array([5, 3, 50]), numbers), expected, atol=1e-15)
    assert (expected[1] == 0).all()


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_features_of_any_size(scale):
    features = scale * np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(gallery._cosines(features, np.array([0])), [[1, np.sqrt(0.5), -1]], rtol=1e-12)


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
