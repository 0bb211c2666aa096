"""Separability, Cover's curve, idealness and the dimension advisor."""

import math
import re

import numpy as np
import pytest
from scipy.optimize import linprog

from keras_issl.diagnostics.cover import cover_curve, wilson
from keras_issl.diagnostics.dimension import advise_dimension
from keras_issl.diagnostics.idealness import compare_idealness, idealness, one_hot, random_projections
from keras_issl.diagnostics.separability import separable
from keras_issl.features import Views

pytestmark = pytest.mark.backend_independent


def feasible(x, signs):
    """Whether s_i (w x_i + b) >= 1 has a solution, by linear programming."""
    rows = -signs[:, None] * np.concatenate([x, np.ones((len(x), 1))], axis=1)
    found = linprog(np.zeros(rows.shape[1]), rows, -np.ones(len(x)), bounds=(None, None), method="highs")
    return found.status == 0


def coins(rng, tasks, n):
    return rng.choice((-1, 1), size=(tasks, n))


# Separability ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, d", [(2, 1), (5, 1), (8, 3), (20, 9), (20, 10), (40, 19), (60, 30), (100, 48)])
@pytest.mark.parametrize("strength", [None, 10.0])
def test_separability_is_that_of_linear_programming(rng, n, d, strength):
    x = rng.normal(size=(n, d)) * np.exp(2 * rng.normal(size=d)) + 3
    signs = coins(rng, 25, n)
    found = separable(x, signs, strength=strength)
    np.testing.assert_array_equal(found.separable, [feasible(x, row) for row in signs])
    solved = (found.decision_function(x) * signs > 0).all(axis=1)
    np.testing.assert_array_equal(solved, found.separable)  # the function that is returned does separate


def test_all_labellings_of_few_points():
    """Exclusive or, and every other labelling of a square's corners, of a line and of a triangle."""
    square = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    every = np.array(np.meshgrid(*[(-1, 1)] * 4)).reshape(4, -1).T  # (16, 4)
    found = separable(square, every).separable
    assert found.sum() == 14  # all but exclusive or and its negative
    assert not found[(every == [-1, 1, 1, -1]).all(axis=1)] and not found[(every == [1, -1, -1, 1]).all(axis=1)]
    line = separable(np.arange(4.0)[:, None], every).separable
    np.testing.assert_array_equal(line, (np.diff(every) != 0).sum(axis=1) <= 1)
    triangle = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
    assert separable(np.array([[0.0, 0], [1, 0], [0, 1]]), triangle).separable.all()


@pytest.mark.parametrize("gap, expected", [(1e-6, True), (0.0, False), (-1e-6, False)])
def test_a_thin_gap_is_seen(gap, expected):
    """Two rows of points whose gap is a millionth of their length, and of two that touch or cross."""
    x = np.linspace(-1, 1, 21)
    upper, lower = np.stack([x, gap + x**2], axis=1), np.stack([x, -(x**2)], axis=1)  # they meet at 0
    signs = np.repeat([[1, -1]], 21, axis=1)
    assert separable(np.concatenate([upper, lower]), signs).separable.tolist() == [expected]


def test_affine_maps_do_not_change_separability(rng):
    x, signs = rng.normal(size=(30, 15)), coins(rng, 40, 30)
    first = separable(x, signs).separable
    assert 0 < first.sum() < 40
    mapped = 1e4 + (x @ rng.normal(size=(15, 15))) * np.logspace(-3, 3, 15)
    np.testing.assert_array_equal(first, separable(mapped, signs).separable)
    np.testing.assert_array_equal(first, separable(np.repeat(x, 3, axis=0), np.repeat(signs, 3, axis=1)).separable)


def test_rounding_separates_nothing(rng):
    """Rank-2 features in single precision have full rank only by rounding."""
    x = (rng.normal(size=(60, 2)) @ rng.normal(size=(2, 100)) + 5).astype(np.float32)
    found = separable(x, coins(rng, 20, 60))
    assert found.rank == 2 and not found.separable.any()
    constant = separable(np.full((4, 3), 0.1, np.float32), [[1, 1, 1, 1], [1, 1, 1, -1]])
    assert constant.rank == 0 and constant.separable.tolist() == [True, False]


@pytest.mark.parametrize(
    "x, signs, match",
    [
        (np.zeros(3), [[1, 1, 1]], "shape"),
        (np.zeros((3, 0)), [[1, 1, 1]], "shape"),
        (np.full((2, 1), np.nan), [[1, -1]], "finite"),
        (np.zeros((2, 1)), [[1, -1, 1]], "a row a task"),
        (np.zeros((2, 1)), [[1, 0]], "-1 or 1"),
    ],
)
def test_bad_points_and_signs(x, signs, match):
    with pytest.raises(ValueError, match=match):
        separable(x, signs)


# Cover's curve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 61, 400])
def test_cover_curve_is_the_binomial_sum(n):
    sums = np.cumsum([math.comb(n - 1, d) for d in range(n + 2)], dtype=object)
    exact = [float(total / 2 ** (n - 1)) if n < 1000 else 0 for total in sums]
    np.testing.assert_allclose(cover_curve(n, np.arange(n + 2)), exact, rtol=1e-11)


def test_cover_curve_limits():
    assert cover_curve(10, 9) == cover_curve(10, 50) == 1 and cover_curve(10, 8) == 1 - 2.0**-9
    assert cover_curve(2 * 51, 50) == pytest.approx(0.5)  # twice as many points as coefficients
    many = cover_curve(100_000, np.array([0, 40_000, 49_000, 49_999, 51_000, 99_999]))
    deviations = (np.array([49_000, 51_000]) + 0.5 - 99_999 / 2) / math.sqrt(99_999 / 4)
    normal = [math.erfc(-z / math.sqrt(2)) / 2 for z in deviations]
    np.testing.assert_allclose(many[[2, 4]], normal, rtol=5e-3)
    assert many[0] == 0 and many[3] == pytest.approx(0.5, abs=1e-9) and many[5] == 1 and (np.diff(many) >= 0).all()
    assert isinstance(float(cover_curve(5, 2)), float) and cover_curve(5, [[1, 2]]).shape == (1, 2)


@pytest.mark.parametrize("n, d", [(10, 3), (20, 9), (30, 12), (64, 28), (64, 36), (200, 95)])
def test_points_in_general_position_follow_covers_curve(rng, n, d):
    tasks, expected = 400, cover_curve(n, d)
    share = separable(rng.normal(size=(n, d)), coins(rng, tasks, n)).separable.mean()
    assert abs(share - expected) <= 3.5 * math.sqrt(expected * (1 - expected) / tasks) + 1e-3


@pytest.mark.parametrize("n", [3, 16, 100])
def test_from_n_minus_one_dimensions_on_everything_is_separable(rng, n):
    for d in (n - 1, 2 * n):
        assert separable(rng.normal(size=(n, d)), coins(rng, 50, n)).separable.all()


@pytest.mark.parametrize("n, d", [(0, 1), (2.5, 1), (True, 1), (3, -1), (3, 0.5), (3, True)])
def test_bad_arguments_of_the_curve(n, d):
    with pytest.raises(ValueError, match="should be"):
        cover_curve(n, d)


def test_wilson_interval():
    np.testing.assert_allclose(wilson(8, 10), (0.4901625, 0.9433178), atol=1e-6)  # the textbook's example
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


# Idealness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_one_hot_solves_everything(probe):
    for point in idealness(one_hot(40, 4), classes=(3, 40), tasks=10, probe=probe).points:
        assert point.accuracy == point.solved == point.separable == point.cover == 1
        assert point.rank == point.n - 1 and point.solved_high == 1 and point.solved_low == wilson(10, 10)[0]


def test_constant_features_solve_the_constant_tasks_only():
    points = idealness(np.ones((3, 32, 8)), classes=(3, 32), tasks=400).points
    assert points[0].solved == points[0].separable == pytest.approx(1 / 4, abs=0.08)  # two of eight labellings
    assert points[1].solved == points[1].separable == 0 and points[1].rank == 0
    assert points[1].accuracy == pytest.approx(0.57, abs=0.03)  # the majority: 1/2 + sqrt(1 / (2 pi 32))
    noise = np.random.default_rng(1).normal(size=(3, 64, 16))
    assert idealness(noise, classes=(64,)).points[0].accuracy == pytest.approx(0.5, abs=0.03)


def test_invariant_features_solve_what_is_separable_and_follow_cover():
    """Fresh views are the training views, so exactly the separable tasks are solved, whatever the number of views."""
    views = random_projections(one_hot(64, 4), 30)
    once, twice = idealness(views, classes=(64,), train_views=(1, 2), tasks=300).points
    assert once.solved == once.separable == twice.solved == twice.separable
    assert once.accuracy == pytest.approx(twice.accuracy, abs=1e-3)
    assert 3.5 * math.sqrt(once.cover * (1 - once.cover) / 300) >= abs(once.solved - once.cover)
    assert 0.2 < once.solved < 0.6 and once.rank == once.dim == 30 and once.cover == once.cover_at_rank


def test_more_views_and_less_noise_help(rng):
    image, noise = rng.normal(size=(1, 64, 128)), rng.normal(size=(8, 64, 128))
    loud = idealness(image + 2 * noise, classes=(64,), train_views=(1, 4)).points
    calm = idealness(image + 0.2 * noise, classes=(64,), train_views=(1, 4)).points
    assert loud[0].accuracy < loud[1].accuracy - 0.02 and loud[1].accuracy < calm[0].accuracy
    assert calm[1].solved > 0.9 > loud[1].solved == 0


def test_mlp_solves_on_a_line_what_linear_probes_cannot():
    line = np.broadcast_to(np.arange(8.0)[:, None], (2, 8, 1))
    linear, mlp = compare_idealness({"line": line}, probe=("linear", "mlp"), classes=(8,)).points
    assert mlp.solved == 1 and linear.solved < 0.3 and linear.dim == mlp.dim == 1
    assert linear.cover == pytest.approx(16 / 256)  # eight cuts, of either sign
    assert mlp.separable < 0.3  # of the points, whatever the probe


def test_the_tasks_are_paired_and_reproducible(rng):
    views = rng.normal(size=(4, 100, 20)).astype(np.float32)
    first = idealness(Views(views, provenance={"preset": "mine"}), classes=(32,), tasks=30)
    assert first == idealness(Views(views, provenance={"preset": "mine"}), classes=(32,), tasks=30)
    assert first.points != idealness(views, classes=(32,), tasks=30, seed=1, name="mine").points
    assert first.points[0].representation == "mine" and first.protocol["test_views"] == 2
    # An invertible map changes no answer about separability: the same images and labels are asked again.
    other = idealness(views @ rng.normal(size=(20, 20)), classes=(32,), tasks=30)
    assert [p.separable for p in first.points] == [p.separable for p in other.points]


def test_comparison_projects_to_the_same_dimensions(rng):
    representations = {"one-hot": one_hot(24, 2), "narrow": Views(rng.normal(size=(2, 24, 4)))}
    found = compare_idealness(representations, dims=(4, 12, 23), classes=(24,), tasks=20)
    assert [(p.representation, p.dim) for p in found.points] == [
        ("one-hot", 4), ("one-hot", 12), ("one-hot", 23), ("narrow", 4)
    ]  # fmt: skip
    assert found.points[2].solved == 1
    header, rows = found.table()
    assert {len(row) for row in rows} == {len(header)} and rows[2][7] == "100 %"
    assert random_projections(representations["narrow"], 2).array.shape == (2, 24, 2)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"classes": (9,)}, "from 2 to 8"),
        ({"classes": ()}, "classes"),
        ({"train_views": (3,)}, "num_views"),
        ({"train_views": (0,)}, "train_views"),
        ({"train_views": (2,), "test_views": 2}, "test_views"),
        ({"probe": "tree"}, "probe"),
        ({"tasks": 0}, "tasks"),
        ({"tasks": True}, "tasks"),
        ({"classes": (True,)}, "classes"),
        ({"classes": (2, True)}, "classes"),
        ({"train_views": True}, "train_views"),
        ({"test_views": True, "train_views": 1}, "test_views"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        idealness(np.zeros((3, 8, 2)), **options)


@pytest.mark.parametrize("views", [np.zeros((8, 2)), np.zeros((1, 8, 2)), np.full((2, 8, 2), np.inf)])
def test_bad_views(views):
    with pytest.raises(ValueError, match="views"):
        idealness(views)
    with pytest.raises(ValueError, match="dim"):
        random_projections(np.zeros((2, 8, 2)), 3)
    with pytest.raises(ValueError, match="representations"):
        compare_idealness({})


def test_bad_dimensions():
    views = one_hot(8, 2)
    for dims in (0, True, (2.0,), (4, True)):
        with pytest.raises(ValueError, match="dim"):
            compare_idealness({"a": views}, dims=dims)
        with pytest.raises(ValueError, match="dim"):
            advise_dimension(views, dims=dims)
    for dims in ((), (9, 10)):
        with pytest.raises(ValueError, match="dims"):
            compare_idealness({"a": views}, dims=dims)
    for options in ({"dims": 9}, {"classes": 9}, {"classes": True}, {"train_views": True}, {"train_views": 2}):
        with pytest.raises(ValueError, match="should be an integer from"):
            advise_dimension(views, **options)
    with pytest.raises(ValueError, match="dim"):
        random_projections(views, True)
    for sizes in ((0, 2), (True, 2), (2, True), (2, 1.0)):
        with pytest.raises(ValueError, match="should be an integer"):
            one_hot(*sizes)


# The advisor ----------------------------------------------------------------------------------------------------------


def decaying(rng, images, dim, views=8, noise=0.0, slope=1.5):
    """Views of images whose variance decays as a power of the direction's number, as that of trained encoders does."""
    scale = np.arange(1, dim + 1) ** -slope
    return (rng.normal(size=(1, images, dim)) * scale + noise * rng.normal(size=(views, images, dim)) * scale).astype(
        "f"
    )


def text(advice):
    return " ".join(advice.summary)


def test_width_is_the_limit_of_a_projected_one_hot():
    advice = advise_dimension(random_projections(one_hot(128, 4), 48), classes=128)
    assert advice.limit == "width" and advice.rank == 48 and advice.summary[0].startswith("The width is the limit")
    assert [p.dim for p in advice.points] == [6, 12, 24, 48]
    assert advice.losses["invariance"] == pytest.approx(0, abs=1e-3) and advice.losses["structure"] > 0.05
    assert [solved for _, solved in advice.predictions.values()] == [cover_curve(128, 96), 1]
    wider = idealness(random_projections(one_hot(128, 4), 64, seed=5), classes=(128,), tasks=100).points[0]
    predicted = advise_dimension(random_projections(one_hot(128, 4), 32), classes=128).predictions[64]
    assert wider.solved_low <= predicted[1] <= wider.solved_high  # and it comes true
    header, rows = advice.table()
    assert {len(row) for row in rows} == {len(header)} and [row[0] for row in rows[-2:]] == ["96", "192"]


def test_the_penalty_of_the_probe_is_no_lack_of_width(rng):
    """Where views coincide and there are n - 1 directions, everything can be solved, whatever the default C does."""
    advice = advise_dimension(decaying(rng, 64, 192), classes=64)
    assert advice.points[-1].accuracy < 0.9 and advice.limit == "none"  # an exact separator solves all
    assert advice.losses["structure"] == advice.losses["invariance"] == 0 < 0.1 < advice.losses["penalty"]
    slightly = advise_dimension(decaying(rng, 64, 192, noise=0.3), classes=64)
    assert slightly.points[-1].solved < 0.95 and slightly.limit == "penalty" and "instead of C = 10" in text(slightly)
    assert advise_dimension(decaying(rng, 64, 192, noise=2.0), classes=64).limit == "invariance"


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("images, dim", [(16, 16), (64, 48), (64, 256), (256, 160)])
def test_width_is_never_blamed_where_cover_allows_all(rng, images, dim, noise):
    advice = advise_dimension(decaying(rng, images, dim, views=4, noise=noise), tasks=10)
    assert cover_curve(advice.classes, dim) >= 0.95 and advice.limit not in ("width", "rank")
    assert "would let" not in text(advice)


@pytest.mark.parametrize("tail", [0, 0.01])
def test_rank_is_the_limit_of_features_that_use_few_dimensions(rng, tail):
    low = rng.normal(size=(256, 12)) @ rng.normal(size=(12, 96))
    advice = advise_dimension(low + tail * rng.normal(size=(8, 256, 96)), classes=128)
    assert advice.limit == "rank" and advice.rank == 12 and "12 of 96 directions" in advice.summary[0]
    assert {predicted for predicted, _ in advice.predictions.values()} == {advice.points[-1].accuracy}
    assert "73 such directions would let 95 % of the tasks" in text(advice) and "collapse" not in text(advice)
    assert cover_curve(128, 73) >= 0.95 > cover_curve(128, 72)


def test_invariance_is_the_limit_of_noisy_features(rng):
    advice = advise_dimension(rng.normal(size=(1, 128, 128)) + rng.normal(size=(8, 128, 128)), classes=128)
    assert advice.limit == "invariance" and advice.losses["structure"] < 0.01 < 0.1 < advice.losses["invariance"]
    assert advice.summary[0].startswith("Not the width first: the views of an image disagree")
    assert {solved for _, solved in advice.predictions.values()} == {None}  # and no share of tasks is promised
    noise = advise_dimension(rng.normal(size=(4, 64, 32)))
    assert noise.limit == "invariance" and noise.rank == 0 and "no direction" in text(noise)


def test_enough_is_enough():
    advice = advise_dimension(one_hot(32, 4), dims=(8,))
    assert advice.limit == "none" and "buys nothing" in advice.summary[0] and len(advice.points) == 2
    constant = advise_dimension(np.ones((4, 32, 4)))
    assert constant.limit == "rank" and constant.rank == 0


def test_noise_dampens_what_width_is_promised(rng):
    """Narrow and noisy: more dimensions raise the accuracy, but views that differ let no task be solved exactly."""
    advice = advise_dimension(rng.normal(size=(1, 256, 32)) + 0.5 * rng.normal(size=(8, 256, 32)), classes=256)
    (twice, solved), (four, most) = advice.predictions.values()
    assert advice.limit == "width" and advice.points[-1].accuracy < twice < four < 1 and solved is most is None
    assert "the views must agree better" in text(advice) and "solve about" not in text(advice)


@pytest.mark.parametrize("noise", [0.3, 0.6])
def test_accuracy_is_extrapolated_from_doublings_and_comes_true(rng, noise):
    """Narrow versions of one wide representation: what their doublings promise is what the wider ones reach."""
    views = decaying(rng, 256, 256, noise=noise, slope=1.0)
    wide = advise_dimension(views, dims=(128,), tasks=20)
    measured = {p.dim: p.accuracy for p in wide.points}
    narrow = advise_dimension(random_projections(views, 64), tasks=20)
    for dim, (predicted, _) in narrow.predictions.items():
        assert predicted == pytest.approx(measured[dim], abs=0.03)
    now, before = narrow.points[-1].accuracy, narrow.points[-3].accuracy
    assert narrow.predictions[128][0] == pytest.approx(now + (now - before) / 2)


@pytest.mark.parametrize(
    "make, verdict",
    [
        (lambda rng: decaying(rng, 400, 160, noise=1.5, slope=1.0), "invariance"),
        (lambda rng: decaying(rng, 400, 96, noise=5.0, slope=0.5), "invariance"),  # as an untrained encoder's
        (lambda rng: decaying(rng, 400, 48, noise=0.1, slope=0.2), "width"),
        (lambda rng: decaying(rng, 400, 12, noise=0.1, slope=0) @ rng.normal(size=(12, 96)), "rank"),
    ],
)
def test_the_verdict_is_the_encoders_and_not_the_samples(rng, make, verdict):
    views = make(rng)
    for count, images in ((8, 400), (4, 400), (8, 270), (4, 200), (8, 100), (4, 50), (8, 24)):
        found = advise_dimension(views[:count, :images], tasks=10)
        if images > 256:  # the same 256 classes
            assert found.limit == verdict
        elif verdict == "invariance":
            assert found.limit in (verdict, "unknown")
        else:  # fewer classes need fewer dimensions; but never the other of the two
            assert found.limit not in {"width", "rank"} - {verdict}
    assert advise_dimension(views[:3], tasks=10).limit == "unknown"


def test_too_little_data_is_said(rng):
    views = random_projections(one_hot(256, 4), 140)
    low = (
        views[:, :100] @ np.random.default_rng(1).normal(size=(140, 8)) @ np.random.default_rng(2).normal(size=(8, 96))
    )
    advice = advise_dimension(low)
    assert advice.limit == "unknown" and "more images are needed: 100, at least 192" in advice.summary[0]
    assert "at least 8 of 96 directions" in text(advice)
    advice = advise_dimension(random_projections(one_hot(64, 3), 16))
    assert advice.limit == "unknown" and "more views are needed: 3 of each image, at least 4" in advice.summary[0]


@pytest.mark.parametrize("images, classes", [(12, 12), (20, 16), (100, 64), (300, 256)])
def test_the_number_of_classes_depends_on_the_images_alone(rng, images, classes):
    for dim in (3, 40):
        advice = advise_dimension(rng.normal(size=(4, images, dim)), tasks=3)
        assert advice.classes == classes
        assert (f"{classes} classes are the largest of 16, 64 and 256" in text(advice)) == (images >= 16)


def test_losses_add_up(rng):
    views = rng.normal(size=(1, 64, 24)) + 0.5 * rng.normal(size=(4, 64, 24))
    advice = advise_dimension(views, classes=64)
    assert sum(advice.losses.values()) == pytest.approx(1 - advice.points[-1].accuracy)
    assert min(advice.losses.values()) >= 0


def test_shares_are_written_with_a_space(rng):
    for noise in (0.1, 1.0):
        advice = advise_dimension(decaying(rng, 64, 24, noise=noise), tasks=10)
        written = text(advice) + " ".join(cell for row in advice.table()[1] for cell in row)
        assert "%" in written and not re.search(r"\d%", written)
