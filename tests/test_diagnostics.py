"""Diagnostics: closed forms, float64 references from the equations, invariances, and verdicts on known failures."""

import itertools
import json
import math
import re

import keras
import numpy as np
import pytest

from keras_issl import objectives
from keras_issl.diagnostics import classes, geometry, knobs, leak, retrieval, spectrum, teacher, verdicts
from keras_issl.features import Features, Views

once = pytest.mark.backend_independent


def rotation(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def healthy(rng, *, images=256, k=16, views=4, noise=0.02):
    """Views of one-hot classes with a little noise, and their certain probabilities."""
    number = np.arange(images) % k
    x = np.eye(k)[number] + noise * rng.normal(size=(views, images, k))
    q = np.broadcast_to(0.98 * np.eye(k)[number] + 0.02 / k, (views, images, k))
    return x, q


def titles(diagnosis, *levels):
    return " | ".join(v.title for v in diagnosis.verdicts if not levels or v.level in levels)


# Geometry


@once
@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_invariance_is_the_mean_over_all_pairs(rng, distance, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", 64)  # several blocks
    x = rng.normal(size=(3, 7, 5)) + 2

    def d(a, b):
        return np.sum((a - b) ** 2) if distance == "squared" else 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    pairs = [(v, i, w, j) for v in range(3) for i in range(7) for w in range(3) for j in range(7)]
    within = np.mean([d(x[v, i], x[w, j]) for v, i, w, j in pairs if i == j and v != w])
    between = np.mean([d(x[v, i], x[w, j]) for v, i, w, j in pairs if i != j])
    found = geometry.invariance(x, distance=distance, samples=20_000)
    np.testing.assert_allclose([found.within, found.between, found.ratio], [within, between, within / between], 1e-10)
    np.testing.assert_allclose([found.within_samples.mean(), found.between_samples.mean()], [within, between], 0.05)
    assert found.within_samples.min() > 0  # no view is compared with itself


@once
def test_invariance_of_known_cases(rng):
    one_hot = np.eye(6)
    assert geometry.invariance(np.stack([one_hot] * 3)).ratio == 0
    assert math.isnan(geometry.invariance(np.full((2, 5, 3), 0.1, np.float32)).ratio)
    chance = geometry.invariance(rng.normal(size=(4, 2000, 8)))  # views know nothing of the image
    assert chance.ratio == pytest.approx(1, abs=0.01)
    x = rng.normal(size=(2, 50, 4))
    moved = 3 * x @ rotation(rng, 4) + 1000
    assert geometry.invariance(moved).ratio == pytest.approx(geometry.invariance(x).ratio, rel=1e-9)
    turned = geometry.invariance(3 * x @ rotation(rng, 4), distance="cosine").ratio
    assert turned == pytest.approx(geometry.invariance(x, distance="cosine").ratio, rel=1e-9)


@once
def test_alignment(rng):
    x = rng.normal(size=(3, 20, 6))
    assert geometry.alignment(np.stack([x[0], 2 * x[0]])) == pytest.approx(0, abs=1e-12)  # the sphere knows no scale
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    for alpha in (1, 2):
        pairs = [np.linalg.norm(unit[i] - unit[j], axis=-1) ** alpha for i, j in ((0, 1), (0, 2), (1, 2))]
        assert geometry.alignment(x, alpha=alpha) == pytest.approx(np.mean(pairs), rel=1e-12)
    cosine = geometry.invariance(x, distance="cosine")
    assert geometry.alignment(x) == pytest.approx(2 * cosine.within, rel=1e-10)


@once
def test_uniformity(rng, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", 500)  # several blocks
    assert geometry.uniformity(np.eye(9)) == pytest.approx(-4, abs=1e-12)
    assert geometry.uniformity(np.ones((9, 3))) == pytest.approx(0, abs=1e-12)
    x = rng.normal(size=(30, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    powers = [np.exp(-3 * np.sum((a - b) ** 2)) for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
    assert geometry.uniformity(x, t=3) == pytest.approx(np.log(np.mean(powers)), rel=1e-10)
    assert geometry.uniformity(5 * x @ rotation(rng, 4), t=3) == pytest.approx(np.log(np.mean(powers)), rel=1e-10)


@once
def test_uniformity_of_the_sphere(rng):
    """On the circle it is log(e^(-2t) I_0(2t)), in three dimensions log(e^(-2t) sinh(2t) / 2t)."""
    angle = np.linspace(0, 2 * np.pi, 10_001)[:-1]
    assert geometry.sphere_uniformity(2) == pytest.approx(np.log(np.exp(-4 + 4 * np.cos(angle)).mean()), rel=1e-12)
    assert geometry.sphere_uniformity(3) == pytest.approx(-4 + np.log(np.sinh(4) / 4), rel=1e-12)
    assert geometry.sphere_uniformity(1) == pytest.approx(np.log((1 + np.exp(-8)) / 2), rel=1e-12)
    assert geometry.sphere_uniformity(8192) == pytest.approx(-4, abs=1e-3)
    assert geometry.uniformity(rng.normal(size=(3000, 16))) == pytest.approx(geometry.sphere_uniformity(16), abs=0.02)


@once
def test_simplex_has_distance_zero(rng):
    simplex = 7 * np.eye(6) @ rotation(rng, 6) + rng.normal(size=6)
    found = geometry.etf_distance(simplex)
    np.testing.assert_allclose([found.angle, found.equiangularity, found.norms], 0, atol=1e-12)
    labels = np.array([3, 3, 7, -1, 9, 9])  # means of classes, whatever their names; one image has none
    x = np.eye(3)[[0, 0, 1, 2, 2, 2]]
    x[3] = 100
    found = geometry.etf_distance(np.stack([x + 0.5, x - 0.5]), labels)
    np.testing.assert_allclose([found.angle, found.equiangularity, found.norms], 0, atol=1e-12)
    assert found.classes == 3


@once
def test_distance_from_a_simplex_in_closed_form():
    """The corners of a square: cosines 0, 0, -1 against -1/3; on a line, (-1, 0, 1) of norms 1, 0, 1."""
    found = geometry.etf_distance(np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
    assert found.angle == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)
    assert found.equiangularity == pytest.approx(math.sqrt(1 / 3 - 1 / 9)) and found.norms == pytest.approx(0)
    assert geometry.etf_distance(np.array([[-1.0], [0], [1]])).norms == pytest.approx(math.sqrt(2 / 9) / (2 / 3))


# Spectrum


@once
@pytest.mark.parametrize("shape", [(40, 11), (11, 40)])
@pytest.mark.parametrize("center", [True, False])
def test_singular_values(rng, shape, center, monkeypatch):
    monkeypatch.setattr(spectrum, "BLOCK", 50)  # several blocks
    x = (rng.normal(size=shape) + 3).astype(np.float32)
    wanted = np.linalg.svd(x.astype(float) - (x.mean(axis=0, dtype=float) if center else 0), compute_uv=False)
    np.testing.assert_allclose(spectrum.singular_values(x, center=center), wanted, atol=1e-5)
    assert spectrum.effective_rank(Features(x), center=center) <= min(shape)


@once
def test_effective_rank_in_closed_form(rng):
    for r in (1, 3, 8):  # r equal singular values
        x = np.linalg.qr(rng.normal(size=(50, r)))[0] @ np.linalg.qr(rng.normal(size=(20, r)))[0].T
        assert spectrum.effective_rank(x, center=False) == pytest.approx(r, rel=1e-6)
        assert spectrum.effective_rank(7 * x @ rotation(rng, 20), center=False) == pytest.approx(r, rel=1e-6)
    s = np.array([4.0, 2, 1, 1])
    p = s / s.sum()
    x = rotation(rng, 12)[:, :4] * s @ rotation(rng, 9)[:4]
    assert spectrum.effective_rank(x, center=False) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)
    # n one-hot rows have n equal values, of which centring takes one; participation counts the same.
    assert spectrum.effective_rank(np.eye(10)) == pytest.approx(9)
    assert spectrum.participation_ratio(np.eye(10)) == pytest.approx(9)
    constant = np.full((30, 6), 0.1, np.float32)
    assert spectrum.effective_rank(constant) == 0 and spectrum.participation_ratio(constant) == 0
    assert spectrum.effective_rank(constant, center=False) == pytest.approx(1)


@once
def test_effective_rank_of_an_isotropic_gaussian(rng):
    """Many more rows than dimensions: all of them. As many rows: the quarter-circle law of singular values."""
    assert spectrum.effective_rank(rng.normal(size=(100_000, 8))) == pytest.approx(8, rel=1e-3)
    s = np.linspace(0, 2, 200_001)[1:]
    density = np.sqrt(4 - s**2) / np.pi * (s[1] - s[0])
    mean = (s * density).sum()
    entropy = -(s * np.log(s) * density).sum() / mean + np.log(mean)  # of p = s / (n mean), less log n
    assert spectrum.effective_rank(rng.normal(size=(400, 400))) == pytest.approx(400 * np.exp(entropy), rel=0.01)
    # The participation ratio of the Marchenko-Pastur law is n D / (n + D).
    assert spectrum.participation_ratio(rng.normal(size=(600, 300))) == pytest.approx(200, rel=0.02)


@once
def test_dead_and_duplicated_dimensions(rng, monkeypatch):
    monkeypatch.setattr(spectrum, "BLOCK", 60)  # several blocks
    x = rng.normal(size=(200, 4))
    wide = np.column_stack(
        [x[:, 0], np.full(200, 1e4 / 3), x[:, 1], -3 * x[:, 0] + 7, 1e-4 * x[:, 2], x[:, 3], x[:, 0]]
    )
    found = spectrum.dimensions(wide)
    assert found.dead.tolist() == [1, 4] and found.duplicated.tolist() == [3, 6] and found.share == 4 / 7
    assert spectrum.dimensions(1e-8 * wide.astype(np.float32)).duplicated.tolist() == [3, 6]
    assert spectrum.dimensions(x).share == 0 and spectrum.dimensions(x + 0.1 * x[:, ::-1]).share == 0
    assert spectrum.dimensions(np.full((20, 3), 0.1, np.float32)).dead.tolist() == [0, 1, 2]


@once
@pytest.mark.parametrize("shape", [(40, 11), (11, 40)])
def test_image_variances_without_noise_are_those_of_the_covariance(rng, shape, monkeypatch):
    monkeypatch.setattr(spectrum, "BLOCK", 50)  # several blocks
    x = rng.normal(size=shape)
    wanted = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / (shape[0] - 1)
    found = spectrum.image_variances(np.stack([x + 3] * 3))
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    np.testing.assert_allclose(spectrum.image_variances(np.stack([1e30 * x] * 2)), 1e60 * wanted, rtol=1e-6, atol=1e51)


@once
@pytest.mark.parametrize("images, width, views", [(2000, 256, 4), (400, 256, 4), (300, 1000, 2)])
def test_view_noise_is_no_direction_of_images(rng, images, width, views):
    """Features of rank 5 with noise in all directions have rank 5, not 60, and their spectrum is known."""
    axes = np.linalg.qr(rng.normal(size=(width, 5)))[0].T
    x = 16 * np.linalg.qr(rng.normal(size=(images, 5)))[0] * np.sqrt(images) @ axes
    found = verdicts.diagnose(x + 0.3 * rng.normal(size=(views, images, width)))
    assert found.measure("effective rank of the images") == pytest.approx(5, abs=0.1)
    assert found.measure("effective rank") > 30 and "Dimensional collapse" in titles(found, "problem")
    np.testing.assert_allclose(found.spectrum[:5], 0.2, atol=0.01)
    assert found.spectrum[5:].max() < 0.001 and found.spectrum.sum() == pytest.approx(1)


@once
def test_units_that_fire_for_the_same_lone_image_are_no_duplicates(rng):
    x = np.maximum(rng.normal(size=(64, 512)) - 2, 0)  # independent
    found = spectrum.dimensions(x)
    assert len(found.duplicated) == 0 and len(found.dead) > 50
    told = verdicts.diagnose(np.stack([x, x]))
    assert "dead" not in titles(told, "warning", "problem") and "Almost no duplicated" in titles(told, "good")
    assert "too few images (64) to call the others dead" in " ".join(v.evidence for v in told.verdicts)
    firing = np.maximum(rng.normal(size=(400, 32)) - 1, 0)  # sparse, and repeated indeed
    twice = spectrum.dimensions(np.concatenate([firing, 3 * firing], axis=1))
    assert twice.duplicated.tolist() == list(range(32, 64))


# Augmentation leak


@once
def test_leak_is_what_the_equations_say(rng, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", 100)  # several blocks
    v, n, d = 3, 40, 6
    x = rng.normal(size=(1, n, d)) * [1, 1, 1, 2, 0.1, 0.1] + rng.normal(size=(v, n, d)) * [3, 0.2, 0.2, 1, 0, 0]
    x = x @ rotation(rng, d)

    def covariance_within(x):
        return sum(np.outer(e, e) for e in (x - x.mean(axis=0)).reshape(-1, d)) / (x.shape[1] * (v - 1))

    order = np.random.default_rng(0).permutation(n)
    u = np.linalg.eigh(covariance_within(x[:, order[: n // 2]]))[1][:, ::-1]  # picked on one half of the images
    half = x[:, order[n // 2 :]]  # measured on the other
    s_w = covariance_within(half)
    s_t = s_w + np.cov(half.mean(axis=0).T) - s_w / v
    for directions in (2, 256):
        found = leak.augmentation_leak(x, directions=directions)
        for k in range(2):
            inside, along = (u[:, k] @ s @ u[:, k] for s in (s_w, s_t))
            assert found.within[k] == pytest.approx(inside / along, rel=1e-4)
            assert found.shares[k] == pytest.approx(along / np.trace(s_t), rel=1e-4)
        assert found.within[0] > 0.5 > found.within[1]
        assert found.share == pytest.approx(u[:, 0] @ s_w @ u[:, 0] / np.trace(s_t), rel=1e-4)
    found = leak.augmentation_leak(x, directions=2)
    moved = leak.augmentation_leak(5 * x @ rotation(rng, d) + 100, directions=2)
    assert moved.share == pytest.approx(found.share, rel=1e-3)


@once
def test_noise_is_no_leak(rng):
    images = rng.normal(size=(1, 500, 64))
    assert leak.augmentation_leak(images + 2 * rng.normal(size=(4, 500, 64))).share == 0  # every image's own direction
    assert leak.augmentation_leak(np.full((2, 20, 4), 0.1, np.float32)).share == 0
    nuisance = rng.normal(size=(4, 500, 1)) * (3 * rotation(rng, 64)[0])  # one direction for all, of variance 9 of 73
    assert leak.augmentation_leak(images + nuisance).share == pytest.approx(9 / 73, abs=0.015)
    assert leak.augmentation_leak(rng.normal(size=(4, 500, 64))).share == 0  # the invariance ratio tells of that


@once
@pytest.mark.parametrize("width", [64, 300])  # all directions, and the leading ones by subspace iteration
def test_a_leak_of_many_directions_is_seen(rng, width):
    """24 of 64 dimensions in which images do not differ at all: none of them has much of the variance."""
    x = np.zeros((4, 500, width))
    x[..., :40] = rng.normal(size=(1, 500, 40))
    x[..., 40:64] = rng.normal(size=(4, 500, 24))
    x = x @ rotation(rng, width)
    found = leak.augmentation_leak(x)
    assert found.share == pytest.approx(24 / 64, abs=0.02) and found.shares[:24].max() < 0.05
    told = verdicts.diagnose(x)
    assert "Augmentation leak" in titles(told, "problem") and told.measure("nuisance share") == found.share
    for faint in (0.1, 30.0):  # beside healthy directions however weak or strong
        few = rng.normal(size=(1, 500, 16)) + 0.3 * rng.normal(size=(4, 500, 16))
        mixed = np.concatenate([few, faint * rng.normal(size=(4, 500, 4))], axis=-1)
        wanted = 4 * faint**2 / (4 * faint**2 + 16 * 1.09)
        assert leak.augmentation_leak(mixed).share == pytest.approx(wanted, rel=0.1)
    for images, views in ((80, 2), (80, 4), (200, 2)):  # nothing is invented of few images
        few = rng.normal(size=(1, images, 48)) + 0.5 * rng.normal(size=(views, images, 48))
        assert leak.augmentation_leak(few).share == 0


@once
def test_the_order_of_views_is_seen(rng):
    x = rng.normal(size=(4, 300, 8))
    shifts = np.array([0.0, 0, 0, 2])[
        :, None, None
    ]  # the last view is made in another way: variance 1 in each dimension
    assert leak.augmentation_leak(x + shifts).view_order == pytest.approx(0.5, abs=0.05)
    chance = [leak.augmentation_leak(x).view_order, leak.augmentation_leak(rng.normal(size=(4, 20, 200))).view_order]
    assert max(chance) < 0.015


@once
def test_known_parameters_are_predicted_where_they_are_encoded(rng):
    angle = rng.normal(size=(3, 200, 2))
    x = np.repeat(rng.normal(size=(1, 200, 10)) * 0.1, 3, axis=0)
    x[..., 0] += angle[..., 0]  # the first, not the second
    for width in (10, 700):  # fewer and more dimensions than rows
        wide = x @ rng.normal(size=(10, width))
        found = leak.augmentation_leak(wide, parameters=angle).parameters
        assert found[0] > 0.95 and found[1] < 0.05
    noise = rng.normal(size=(3, 200, 700))  # fits whatever it is fitted on, and says nothing of other images
    assert leak.augmentation_leak(noise, parameters=angle).parameters.max() < 0.05


# Classes


@once
def test_class_usage_is_what_dissl_logs(rng):
    logits = rng.normal(size=(3, 64, 10)) * 2
    logs = objectives.dissl.dissl_loss(teacher_logits=logits, student_logits=logits, teacher_temperature=1.0)[1]
    q = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    usage = teacher.class_usage(q)
    pairs = {
        "marginal_entropy": "marginal_entropy",
        "marginal_entropy_bound": "bound",
        "conditional_entropy": "conditional_entropy",
        "kl_invariance": "kl",
    }
    for theirs, ours in pairs.items():
        assert getattr(usage, ours) == pytest.approx(float(logs[theirs]), rel=1e-4), ours
    best = q.argmax(axis=-1)
    agreement = np.mean([best[i] == best[j] for i, j in ((0, 1), (0, 2), (1, 2))])
    assert usage.agreement == pytest.approx(agreement)
    np.testing.assert_array_equal(usage.assigned, q.mean(axis=0).argmax(axis=1))
    assert usage.used == len(set(usage.assigned)) and usage.largest == np.bincount(usage.assigned).max() / 64
    assert usage.information == pytest.approx(usage.marginal_entropy - usage.conditional_entropy)
    assert usage.confidence == pytest.approx(q.max(axis=-1).mean())
    shares = np.unique(usage.assigned, return_counts=True)[1] / 64
    assert usage.assigned_entropy == pytest.approx(-(shares * np.log(shares)).sum())
    assert usage.effective == pytest.approx(np.exp(usage.assigned_entropy))


@once
def test_uncertainty_is_no_balance(rng):
    """H(M) grows with uncertainty beyond log N; the information and the entropy of the assigned classes do not."""
    for n, c, sharp in ((40, 500, 0.5), (600, 1024, 0.5), (300, 30, 0.1), (300, 30, 20)):
        logits = sharp * rng.normal(size=(3, n, c))
        usage = teacher.class_usage(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
        assert usage.information <= usage.bound == np.log(min(n, c))
        assert usage.effective <= usage.used + 1e-9
        assert sharp == 20 or usage.information < 0.2 < usage.bound < usage.marginal_entropy + 1e-2
    assert usage.information > 1
    one = 0.9 * np.full((2, 60, 20), 1 / 20) + 0.1 * np.eye(20)[3]  # everywhere, by a hair the same class
    assert teacher.class_usage(one).assigned_entropy == 0


@once
def test_class_usage_in_closed_form(monkeypatch):
    monkeypatch.setattr(teacher, "BLOCK", 64)  # several blocks
    c = 8
    one_hot = np.stack([np.eye(c)[np.arange(32) % c]] * 2)
    usage = teacher.class_usage(one_hot)
    assert usage.marginal_entropy == usage.bound == pytest.approx(math.log(c)) and usage.effective == pytest.approx(c)
    assert usage.information == usage.assigned_entropy == pytest.approx(math.log(c)) and usage.confidence == 1
    assert usage.conditional_entropy == usage.kl == 0 and usage.agreement == 1 and usage.largest == 1 / c
    uniform = teacher.class_usage(np.full((2, 32, c), 1 / c))
    assert uniform.marginal_entropy == uniform.conditional_entropy == pytest.approx(math.log(c))
    one = teacher.class_usage(np.broadcast_to(np.eye(c)[3], (2, 32, c)))
    assert one.marginal_entropy == pytest.approx(0, abs=1e-12) and one.used == 1 and one.largest == 1
    few = teacher.class_usage(np.eye(4, 100)[None])  # fewer images than classes: the bound is theirs
    assert few.bound == pytest.approx(math.log(4)) and few.kl == 0 and few.balance.shape == (100,)


@once
def test_equivalence_classes(rng, monkeypatch):
    monkeypatch.setattr(teacher, "BLOCK", 24)  # several blocks
    best = np.array([[4, 4, 1, 1, 1, 2, 2], [4, 4, 1, 1, 2, 2, 2]])  # (V, N); one view of image 4 falls into class 2
    q = 0.9 * np.eye(6)[best] + 0.1 / 6
    q[:, 1] = 0.8 * np.eye(6)[4] + 0.2 / 6  # less sure
    q[0, 4, 1] += 0.01
    q[0, 4, 0] -= 0.01  # class 1 by a hair
    found = classes.equivalence_classes(q, labels=[7, 7, 0, 5, 5, 5, -1])
    assert [(one.number, one.images.tolist()) for one in found.classes] == [(1, [2, 3, 4]), (2, [5, 6]), (4, [0, 1])]
    assert [one.share for one in found.classes] == [3 / 7, 2 / 7, 2 / 7]
    np.testing.assert_allclose(found.classes[2].confidence, [0.9 + 0.1 / 6, 0.8 + 0.2 / 6])
    assert [one.labels for one in found.classes] == [{5: 2, 0: 1}, {5: 1}, {7: 2}]
    assert list(found.classes[0].labels) == [5, 0]  # the most frequent first
    assert found.confused == ((1, 2, pytest.approx(1 / 6)),) and found.merged == ()
    # Coarser views put classes 2 and 4 into one, and leave class 1 alone.
    coarse = np.eye(6)[[0, 0, 1, 1, 1, 0, 0]][None]
    assert classes.equivalence_classes(q, coarser=coarse).merged == ((2, 4, pytest.approx(1)),)
    assert classes.equivalence_classes(q, coarser=q).merged == ()
    assert classes.equivalence_classes(q, coarser=coarse, top=0).merged == ()


@once
def test_purity_beside_chance(rng):
    """An image on its own is no pure class, and random groups are not pure by as little as the majority's share."""
    best, labels = np.array([0, 0, 0, 1, 1, 2, 3, 3]), np.array([5, 5, 6, 6, 6, 5, 7, -1])
    found = classes.equivalence_classes(np.eye(4)[best][None], labels=labels)
    assert found.purity == 4 / 5  # classes 0 and 1; class 2 is a lone image, class 3 a lone label
    orders = itertools.permutations([5, 5, 6, 6, 6, 5, 7], 5)
    right = [max(map(one[:3].count, one[:3])) + max(map(one[3:].count, one[3:])) for one in orders]
    assert found.purity_chance == pytest.approx(np.mean(right) / 5, abs=0.05)
    lone = classes.equivalence_classes(np.eye(6)[None], labels=np.arange(6) % 2)
    assert lone.purity is None and lone.purity_chance is None
    assert classes.equivalence_classes(np.eye(4)[best][None]).purity is None
    groups, labels = np.arange(180) % 60, rng.integers(10, size=180)  # threes that know nothing of the labels
    found = classes.equivalence_classes(np.eye(60)[groups][None], labels=labels)
    assert found.purity == pytest.approx(found.purity_chance, abs=0.06) and found.purity_chance > 0.35
    again = classes.equivalence_classes(np.eye(60)[groups][None], labels=labels)
    assert again.purity_chance == found.purity_chance
    pure = classes.equivalence_classes(np.eye(60)[groups][None], labels=groups % 10)
    assert pure.purity == 1 > 0.6 > pure.purity_chance


@once
def test_overlap_is_one_less_the_total_variation(rng):
    q = rng.dirichlet(np.full(5, 0.3), size=(6, 40))
    found = classes.equivalence_classes(q, top=100)
    own, best = q.mean(axis=0).argmax(axis=1), q.argmax(axis=-1)
    for a, b, share in found.confused:
        p, r = (np.bincount(best[:, own == k].ravel(), minlength=5) / best[:, own == k].size for k in (a, b))
        assert a < b and share == pytest.approx(1 - np.abs(p - r).sum() / 2)
    assert [pair[2] for pair in found.confused] == sorted((pair[2] for pair in found.confused), reverse=True)


class TinyTeacher(keras.layers.Layer):
    """The interface that `assignments` asks for, with a known answer: logits are the features."""

    teacher_temperature, num_teacher_views = 0.5, 2

    def call(self, student_features, training=None):
        assert training is False
        return {"teacher_logits": student_features[: self.num_teacher_views]}


def test_assignments(rng):
    x = rng.normal(size=(3, 7, 5)).astype("float32")
    tiny = TinyTeacher()
    tiny.build((2, 7, 5))
    powers = np.exp(x.astype(float) / 0.5)
    wanted = powers / powers.sum(axis=-1, keepdims=True)
    for batch_size in (2, 256):  # with and without a rest
        q = teacher.assignments(tiny, Views(x), batch_size=batch_size)
        assert q.dtype == np.float32 and q.shape == (3, 7, 5)
        np.testing.assert_allclose(q, wanted, rtol=1e-5)


def test_assignments_of_dissl(rng):
    """All views by the teacher head in inference mode, each on its own, with its temperature."""
    dissl = objectives.DISSL(num_classes=6, teacher_hidden=(8,), bottleneck=4, teacher_temperature=0.25)
    dissl.build((2, None, 5))
    x = rng.normal(size=(3, 9, 5)).astype("float32")
    logits = keras.ops.convert_to_numpy(dissl.teacher_head(x.reshape(-1, 5), training=False)).reshape(3, 9, 6) / 0.25
    powers = np.exp(logits.astype(float))
    q = teacher.assignments(dissl, x, batch_size=4)
    np.testing.assert_allclose(q, powers / powers.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(teacher.assignments(dissl, x[::-1])[::-1], q, rtol=1e-4, atol=1e-6)
    assert classes.equivalence_classes(q).classes
    for objective in (objectives.CISSL(output_dim=4, hidden=(8,)), TinyNothing()):
        objective.build((2, None, 5))
        with pytest.raises(ValueError, match="learned classes"):
            teacher.assignments(objective, x)
    with pytest.raises(ValueError, match="load_objective"):
        teacher.assignments(objectives.DISSL(num_classes=6), x)


class TinyNothing(TinyTeacher):
    def call(self, student_features, training=None):
        return {"projections": student_features}


@once
@pytest.mark.parametrize("block", [1 << 22, 40])
def test_retrieve(rng, tmp_path, monkeypatch, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    x[3] = 0
    x[9] = 2 * x[7]  # as near as image 7 to anything
    np.save(tmp_path / "x.npy", x)
    query = rng.normal(size=(11, 5)).astype(np.float32)
    query[0] = x[7]
    norms = np.linalg.norm(x, axis=1)
    cosines = query @ x.T / np.where(norms > 0, norms, 1) / np.linalg.norm(query, axis=1, keepdims=True)
    for features in (x, Features(x), np.load(tmp_path / "x.npy", mmap_mode="r")):
        indices, near = retrieval.retrieve(query, features, k=60)
        np.testing.assert_allclose(near, -np.sort(-cosines, axis=1), atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(cosines, indices, 1), near, atol=1e-6)
    indices, near = retrieval.retrieve(query[0], x, k=2)
    assert set(indices.tolist()) == {7, 9} and near == pytest.approx([1, 1], abs=1e-6)


# Verdicts


@once
def test_healthy(rng):
    x, q = healthy(rng)
    for probabilities in (None, q):
        found = verdicts.diagnose(Views(x), probabilities=probabilities)
        assert found.level == "good", titles(found)
        looked = "No collapse or leak found" if probabilities is None else "No collapse, leak or imbalance found"
        assert found.verdicts[0].title == looked
    assert found.measure("effective rank") == pytest.approx(15, abs=0.3)
    assert found.measure("classes used") == 16 and found.measure("simplex angle") < 0.01
    assert found.measure("nuisance share") == 0
    assert found.dims == {"views": 4, "images": 256, "features": 16, "classes": 16}
    assert found.spectrum.sum() == pytest.approx(1) and (np.diff(found.spectrum) <= 0).all()
    assert found.within.shape == found.between.shape == (4096,) and found.class_balance.shape == (16,)
    json.dumps([found.protocol, found.dims, [[m.value, m.reference] for m in found.measures]], allow_nan=False)
    gaussian = rng.normal(size=(1, 300, 32)) + 0.3 * rng.normal(size=(4, 300, 32))
    assert verdicts.diagnose(gaussian).level == "good"
    few_classes, q = healthy(rng, k=3)  # a simplex of three in 16 dimensions, without knowing of the classes and with
    wide = np.concatenate([few_classes, np.zeros((4, 256, 37)) + 0.001 * rng.normal(size=(4, 256, 37))], axis=-1)
    assert "Dimensional collapse" in titles(verdicts.diagnose(wide), "problem")
    assert "dimensions are used" in titles(verdicts.diagnose(wide, probabilities=q), "good")


@once
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
def test_constant_features(value):
    found = verdicts.diagnose(np.full((3, 40, 8), value, np.float32))
    assert titles(found) == "Complete collapse: all images have the same features" and found.level == "problem"


@once
def test_a_large_common_offset_is_no_collapse(rng):
    x, _ = healthy(rng)
    found = verdicts.diagnose((100 + 0.02 * x).astype(np.float32))
    assert found.level == "warning" and "Large common offset" in titles(found, "warning")
    assert "half precision" not in found.verdicts[0].evidence and "Centre" in found.verdicts[0].advice
    plain = verdicts.diagnose(x)
    for name in ("invariance ratio", "effective rank of the images", "nuisance share", "simplex angle"):
        assert found.measure(name) == pytest.approx(plain.measure(name), rel=0.01, abs=1e-3), name
    rounding = 100 * (1 + np.finfo(np.float32).eps * rng.integers(-1, 2, size=x.shape))
    assert "Complete collapse" in titles(verdicts.diagnose(rounding.astype(np.float32)), "problem")
    small = (100 + x).astype(np.float16).astype(np.float32)  # a unit is sixteen digits of half precision there
    found = verdicts.diagnose(small)
    assert "Large common offset" in titles(found, "warning") and "half precision" in found.verdicts[0].evidence
    for half in (np.full(x.shape, 0.1), 100 + 0.06 * rng.integers(-1, 2, size=x.shape)):
        assert verdicts.diagnose(half.astype(np.float16).astype(np.float32)).level == "problem"


@once
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_changes_nothing(rng, scale):
    x, _ = healthy(rng)
    angle = rng.normal(size=(4, 256, 1))
    plain, found = (verdicts.diagnose((s * x).astype(np.float32), parameters=angle) for s in (1, scale))
    assert titles(found) == titles(plain)
    for one, other in zip(plain.measures, found.measures, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-3, abs=1e-5), one.name
    np.testing.assert_allclose(found.between, scale**2 * plain.between, rtol=1e-4)
    assert np.isfinite(verdicts.diagnose(1e200 * x).within).all()


@once
def test_one_class_and_uniform_teacher(rng):
    x, q = healthy(rng)
    one = np.broadcast_to(0.98 * np.eye(16)[3] + 0.02 / 16, q.shape)
    assert "One class" in titles(verdicts.diagnose(x, probabilities=one), "problem")
    uniform = np.full(q.shape, 1 / 16) * (1 + 0.01 * rng.normal(size=q.shape))
    uniform = uniform / uniform.sum(axis=-1, keepdims=True)
    found = verdicts.diagnose(x, probabilities=uniform)
    assert "Uniform teacher" in titles(found, "problem") and "One class" not in titles(found)
    advice = next(v for v in found.verdicts if "Uniform" in v.title).advice
    assert "teacher_temperature" in advice and "invariance_weight" in advice
    undecided = verdicts.diagnose(x, probabilities=0.4 * q + 0.6 / 16)
    assert "Undecided teacher" in titles(undecided, "warning") and undecided.level == "warning"
    number = np.where(rng.random(256) < 0.6, 0, np.arange(256) % 16)
    uneven = np.stack([np.eye(16)[number]] * 4)
    assert "Unbalanced classes" in titles(verdicts.diagnose(x, probabilities=uneven), "warning")
    torn = np.mean([np.roll(q, shift, axis=-1) for shift in range(3)], axis=0)  # three classes an image
    for spread in (torn, 0.4 * q + 0.6 / 16):  # even as they are, that is no balance
        found = verdicts.diagnose(x, probabilities=spread)
        assert "Undecided teacher" in titles(found, "warning") and "balanced" not in titles(found, "good")
    shuffled = np.stack([q[0][rng.permutation(256)] for _ in range(4)])
    assert "different classes" in titles(verdicts.diagnose(x, probabilities=shuffled), "warning")


@once
def test_an_uncertain_teacher_of_many_classes_is_not_balanced(rng):
    """Thirty classes an image: H(M) is above log N, and says nothing of balance."""
    x, _ = healthy(rng, images=200)
    logits = rng.normal(size=(1, 200, 1024)) * 3
    q = np.repeat(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True), 4, axis=0)
    found = verdicts.diagnose(x, probabilities=q)
    assert found.measure("marginal entropy") > np.log(200) and found.measure("conditional entropy") > 3
    assert {"Undecided teacher: assignments are far from certain"} < {v.title for v in found.verdicts}
    assert "Too few images to judge the balance" in titles(found, "warning") and "balanced" not in titles(found, "good")
    text = " ".join(v.evidence for v in found.verdicts)
    assert "1,024 classes used by 200 images" in text and "of at most 5.3 nats, log min(N, C)" in text
    with pytest.raises(ValueError, match="effective classes|classes used"):
        found.measure("effective classes")
    assert found.measure("information") < np.log(200)
    for measure in found.measures:
        if measure.name in ("classes used", "information", "marginal entropy"):
            assert measure.value <= measure.reference


@once
def test_few_images_are_said_to_be_few(rng):
    """The same healthy representation, by 2,000, 200 and 40 images: no leak is invented, no rank or balance claimed."""
    simplex = np.concatenate([rng.normal(size=(1, 2000, 24)), np.zeros((1, 2000, 40))], axis=-1) @ rotation(rng, 64)
    x = simplex + 0.35 * rng.normal(size=(4, 2000, 64)) @ (np.geomspace(2, 0.05, 64)[:, None] * rotation(rng, 64))
    q = np.stack([0.98 * np.eye(32)[rng.integers(32, size=2000)] + 0.02 / 32] * 4)
    assert "leak found" in titles(verdicts.diagnose(x), "good")
    few = verdicts.diagnose(x[:, :40], probabilities=q[:, :40])
    assert "tell how" not in titles(few)
    assert "Too few images to look for an augmentation leak" in titles(few, "warning")
    assert "Too few images to judge the balance" in titles(few, "warning")
    assert "as far as 40 images can tell" in titles(few, "good")
    with pytest.raises(ValueError, match="nuisance share|view order"):
        few.measure("nuisance share")
    assert not any("suffice" in v.evidence for v in few.verdicts)  # 22 classes of 40 images are no classes
    many = verdicts.diagnose(x[:, :200], probabilities=q[:, :200])
    assert "suffice for the 32 learned classes in use" in " ".join(v.evidence for v in many.verdicts)
    assert many.measure("effective classes") <= many.measure("classes used") == 32
    one = verdicts.diagnose(x[:, :40], probabilities=np.broadcast_to(q[:, :1], (4, 40, 32)))  # that is clear at once
    assert "One class" in titles(one, "problem")
    x[..., 0] *= rng.random((1, 2000)) < 0.01  # fires for one image in a hundred
    rare = np.where(rng.random((1, 2000, 20)) < 0.01, 1.0, 0.0) + np.zeros((4, 1, 1))
    rare = verdicts.diagnose(np.concatenate([x, rare], axis=-1)[:, :40])
    assert "Almost no duplicated dimensions" in titles(rare, "good")
    assert "too few images (40) to call the others dead" in " ".join(v.evidence for v in rare.verdicts)


@once
def test_texts(rng):
    """Percent stand with a space, sentences begin with a capital letter and end with a full stop."""
    x, q = healthy(rng)
    angle = rng.normal(size=(4, 256, 1))
    leaky = np.concatenate([x, 2 * angle], axis=-1)
    for found in (
        verdicts.diagnose(x, probabilities=q),
        verdicts.diagnose(leaky, probabilities=0.4 * q + 0.6 / 16, parameters=angle),
        verdicts.diagnose(leaky[:, :30], parameters=angle[:, :30]),
        verdicts.diagnose(rng.normal(size=(2, 10, 4))),
    ):
        for verdict in found.verdicts:
            for text in filter(None, (verdict.evidence, verdict.advice)):
                assert not re.search(r"\d%|\d  %|  ", text), text
                assert (text[0].isupper() or text[0].isdigit()) and text.endswith("."), text
    assert "16 of 16 classes used, as evenly as 16 equal ones" in " ".join(
        v.evidence for v in verdicts.diagnose(x, probabilities=q).verdicts
    )


@once
def test_dimensional_collapse(rng):
    images = rng.normal(size=(1, 300, 4)) @ rng.normal(size=(4, 64))
    found = verdicts.diagnose(images + 0.01 * rng.normal(size=(4, 300, 64)))
    assert "Dimensional collapse" in titles(found, "problem")
    assert not {"Not invariant", "leak:"} & set(titles(found, "problem", "warning").split())


@once
def test_not_invariant(rng):
    found = verdicts.diagnose(rng.normal(size=(4, 300, 32)))
    assert "Not invariant" in titles(found, "problem") and "tell how" not in titles(found)
    weakly = verdicts.diagnose(rng.normal(size=(1, 300, 32)) + 1.5 * rng.normal(size=(4, 300, 32)))
    assert "Weakly invariant" in titles(weakly, "warning") and weakly.level == "warning"


@once
def test_augmentation_leak(rng):
    x, _ = healthy(rng, images=300)
    found = verdicts.diagnose(x + rng.normal(size=(4, 300, 1)) * rotation(rng, 16)[0])
    assert "Augmentation leak" in titles(found, "problem")
    ordered = verdicts.diagnose(x + np.arange(4)[:, None, None] * 0.1 * np.ones(16))
    assert "Augmentation leak" in titles(ordered, "warning", "problem")
    for _ in range(20):  # few images, one strong nuisance of another kind: the views' order is chance
        few = 3 * rng.normal(size=(1, 20, 8)) + rng.normal(size=(2, 20, 8))
        assert "tell how" not in titles(verdicts.diagnose(few))
    angle = rng.normal(size=(4, 300, 1))
    faint = x + 0.05 * angle * rotation(rng, 16)[0]  # too little variance to be seen without knowing the angle
    assert verdicts.diagnose(faint).level == "good"
    told = verdicts.diagnose(np.concatenate([faint, 0.05 * angle], axis=-1), parameters=angle)
    assert "Augmentation leak" in titles(told, "warning") and told.measure("predicted parameters") > 0.9


@once
def test_advice_names_the_knobs_of_one_objective(rng):
    """Of every objective, under the name of its class and of its recipe: its own arguments and nobody else's."""
    from members import SMALL

    from keras_issl import recipes

    few = rng.normal(size=(1, 300, 4)) @ rng.normal(size=(4, 64)) + 0.01 * rng.normal(size=(4, 300, 64))
    told = {}
    for kind in knobs.KNOBS:
        for key, cls in recipes.OBJECTIVES.items():
            sentence = knobs.knob(kind, key)
            assert sentence == knobs.knob(kind, cls.__name__)
            arguments = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b|\bepsilon\b|\btemperature\b", sentence))
            assert arguments <= set(SMALL[cls.__name__]().get_config()), sentence
            told[kind, key] = sentence
    assert told["collapse", "byol"].startswith("BYOL: raise teacher_momentum") and not told["rank", "byol"]
    for name in (None, "byol", "barlow_twins", "MyOwn"):
        found = verdicts.diagnose(few, objective=name)
        advice = next(v.advice for v in found.verdicts if "Dimensional collapse" in v.title)
        assert ("CISSL, SimCLR and MoCo v3: lower the temperature" in advice) == (name is None)
        assert ("Barlow Twins: raise off_diagonal_weight." in advice) == (name in (None, "barlow_twins"))
        assert advice.startswith("A linear probe") and advice.endswith("loses nothing.")


@once
def test_dead_and_duplicated_dimensions_are_told(rng):
    x, _ = healthy(rng)
    found = verdicts.diagnose(np.concatenate([x, 2 * x[..., :2], np.zeros((4, 256, 1))], axis=-1))
    assert "Dead or duplicated" in titles(found, "warning")
    evidence = next(v.evidence for v in found.verdicts if "Dead" in v.title)
    assert "19 dimensions 1 do not vary and 2 repeat" in evidence
    found = verdicts.diagnose(np.concatenate([x] * 2 + [np.zeros((4, 256, 3))], axis=-1))
    assert "Dead or duplicated" in titles(found, "problem")


@once
def test_more_images_than_asked_for_are_drawn(rng):
    x, q = healthy(rng, images=500)
    found = verdicts.diagnose(x, probabilities=q, parameters=rng.normal(size=(4, 500, 1)), max_images=200)
    again = verdicts.diagnose(x, probabilities=q, parameters=rng.normal(size=(4, 500, 1)), max_images=200)
    assert found.dims["images"] == 200 and found.protocol["images"] == "200 of 500" and found.level == "good"
    np.testing.assert_array_equal(found.within, again.within)


@once
def test_few_images_and_dimensions(rng):
    """Nothing fails at the smallest sizes, and two images do not make duplicates."""
    for shape in ((2, 2, 1), (2, 2, 50), (5, 3, 1)):
        found = verdicts.diagnose(rng.normal(size=shape))
        assert "duplicated" not in titles(found) and all(np.isfinite(m.reference) for m in found.measures)


# Bad input


@once
def test_bad_views(rng):
    x = rng.normal(size=(2, 6, 3))
    broken = x.copy()
    broken[1, 4, 2] = np.nan
    for bad, message in (
        (x[0], "at least two views"),
        (x[:1], r"\(1, 6, 3\)"),
        (x[:, :1], "two images"),
        (x[..., :0], r"\(2, 6, 0\)"),
        (broken, "NaN or infinity in 1 of 12 rows"),
        (np.full((2, 6, 3), "a"), "numbers"),
    ):
        for call in (verdicts.diagnose, geometry.invariance, geometry.alignment, leak.augmentation_leak):
            with pytest.raises(ValueError, match=message):
                call(bad)
    for call in (spectrum.singular_values, spectrum.dimensions, geometry.uniformity, geometry.etf_distance):
        with pytest.raises(ValueError, match="shape"):
            call(x[0, 0])
        with pytest.raises(ValueError, match="NaN"):
            call(broken)


@once
def test_bad_arguments(rng):
    x, q = healthy(rng, images=32)
    calls = [
        (lambda: geometry.invariance(x, distance="l1"), "distance"),
        (lambda: geometry.alignment(x, alpha=0), "alpha"),
        (lambda: geometry.uniformity(x, t=-1), "`t`"),
        (lambda: geometry.uniformity(np.ones((1, 3))), "two images"),
        (lambda: geometry.sphere_uniformity(0), "`dim`"),
        (lambda: geometry.sphere_uniformity(3, t=0), "`t`"),
        (lambda: geometry.etf_distance(x, np.zeros(32, int)), "two classes"),
        (lambda: geometry.etf_distance(x, np.zeros(32)), "integer"),
        (lambda: geometry.etf_distance(x, np.arange(31)), r"\(32,\)"),
        (lambda: leak.augmentation_leak(x, parameters=np.zeros((4, 31, 1))), "parameters"),
        (lambda: leak.augmentation_leak(x, parameters=np.full((4, 32, 1), np.inf)), "finite"),
        (lambda: verdicts.diagnose(x, max_images=1), "max_images"),
        (lambda: verdicts.diagnose(x, probabilities=q[:, :31]), "same 32 images"),
        (lambda: verdicts.diagnose(x, probabilities=2 * q), "softmax"),
        (lambda: verdicts.diagnose(x, probabilities=np.log(q)), "at least 0"),
        (lambda: verdicts.diagnose(x, probabilities=q[0]), r"\(V, N, C\)"),
        (lambda: verdicts.diagnose(x, probabilities=np.full(q.shape, np.nan)), "finite"),
        (lambda: verdicts.diagnose(x).measure("colour"), "effective rank"),
        (lambda: classes.equivalence_classes(q, labels=np.zeros(31, int)), "labels"),
        (lambda: classes.equivalence_classes(q, coarser=q[:, :31]), "`coarser`"),
        (lambda: classes.equivalence_classes(q, coarser=np.full((2, 32, 4), 0.25)), "16 classes"),
        (lambda: retrieval.retrieve(x[0], x[0], k=33), "from 1 to 32"),
        (lambda: retrieval.retrieve(x[0], x[0], k=0), "`k`"),
        (lambda: retrieval.retrieve(x[0][:, :3], x[0]), "one width"),
        (lambda: retrieval.retrieve(np.full(16, np.nan), x[0]), "finite"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
