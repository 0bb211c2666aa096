"""Verdicts on training runs: records with closed forms for every kind, and what must not change a verdict."""

import math
import re

import numpy as np
import pytest
from members import SMALL

from keras_issl import recipes
from keras_issl.diagnostics import TrainingVerdict, Verdict, judge_training, knobs
from keras_issl.diagnostics import training_collapses as collapses

pytestmark = pytest.mark.backend_independent
ROWS = 40
CONFIG = {"num_classes": 32, "maximality_weight": 2.3, "invariance_weight": 0.8}
FULL = math.log(32)


def falling(first, last, rows=ROWS):
    """From `first` towards `last`, as a loss goes."""
    return last + (first - last) * np.exp(-np.linspace(0, 6, rows))


def base(rows=ROWS, **columns):
    """What every healthy run records; columns given replace these."""
    sparse = np.where(np.arange(rows) % 4 == 0, 1.0, np.nan)
    warm = np.minimum(np.arange(1, rows + 1) / 4, 1)
    records = {
        "step": 10.0 * np.arange(1, rows + 1),
        "epoch": np.arange(1, rows + 1) / 4,
        "seconds": 2.0 * np.arange(1, rows + 1),
        "loss": falling(5.0, 1.0, rows),
        "learning_rate": 0.004 * warm * np.linspace(1, 0, rows),
        "images_per_second": np.full(rows, 500.0),
        "input_share": np.full(rows, 0.05),
        "online_loss": falling(2.3, 0.3, rows),
        "online_top1": falling(0.1, 0.9, rows),
        "effective_rank": sparse * falling(100, 70, rows),
        "within_between": sparse * falling(0.85, 0.15, rows),
    }
    return records | columns


def dissl(rows=ROWS, distillation=None, marginal=None, unsure=None, invariance=None, weight=2.3, beta=0.8, **columns):
    """DISSL's columns from its terms, with the loss that they add up to."""
    unsure = falling(3.1, 0.6, rows) if unsure is None else np.broadcast_to(unsure, rows).astype(float)
    marginal = falling(3.46, 3.31, rows) if marginal is None else np.broadcast_to(marginal, rows).astype(float)
    invariance = unsure + 0.5 if invariance is None else np.broadcast_to(invariance, rows).astype(float)
    distillation = unsure + 0.4 if distillation is None else np.broadcast_to(distillation, rows).astype(float)
    return base(rows) | {
        "loss": distillation - weight * marginal + beta * invariance,
        "distillation": distillation,
        "invariance": invariance,
        "marginal_entropy": marginal,
        "marginal_entropy_bound": np.full(rows, FULL),
        "conditional_entropy": unsure,
        "kl_invariance": invariance - unsure,
        "effective_classes": np.exp(marginal),
        "classes_used": np.full(rows, 32.0),
        **columns,
    }


def judged(records, objective="DISSL", config=CONFIG, batch_size=128, online_classes=10):
    return judge_training(
        records, objective=objective, config=config, batch_size=batch_size, online_classes=online_classes
    )


def kinds(found):
    return [verdict.kind for verdict in found]


def then(row, before, after, rows=ROWS):
    """`before` up to a row, `after` from it on."""
    return np.where(np.arange(rows) < row, before, after)


# A run that goes well


@pytest.mark.parametrize("records, objective", [(base(), None), (base(), "MyOwn"), (dissl(), "DISSL")])
def test_a_healthy_run_is_good_and_says_its_final_numbers(records, objective):
    (verdict,) = judged(records, objective)
    assert isinstance(verdict, TrainingVerdict) and isinstance(verdict, Verdict)
    assert (verdict.level, verdict.kind, verdict.since, verdict.collapsed) == ("good", "good", None, False)
    assert "400 steps" in verdict.evidence and "online top-1 0.898" in verdict.evidence
    assert f"{records['loss'][0]:.4g} -> {records['loss'][-1]:.4g}" in verdict.evidence


def test_every_objective_of_ours_is_known_by_its_class_and_by_its_recipe():
    known = {*collapses.TEACHERS, *collapses.CHANCE, "SwAV", "BYOL", "SimSiam", "VICReg", "Barlow Twins"}
    assert {knobs.official_name(name) for name in recipes.OBJECTIVES} == known
    assert {knobs.official_name(cls.__name__) for cls in recipes.OBJECTIVES.values()} == known


def test_columns_and_configuration_are_those_of_the_objectives():
    """The judges read columns and arguments by name; these are the names."""
    made = {knobs.official_name(name): make() for name, make in SMALL.items()}
    reads = {
        "DISSL": ("marginal_entropy", "marginal_entropy_bound", "conditional_entropy", "invariance", "kl_invariance"),
        "DINO": ("marginal_entropy", "teacher_entropy"),
        "SwAV": ("code_entropy", "marginal_entropy"),
        "VICReg": ("variance", "invariance", "feature_std"),
        "Barlow Twins": ("correlation", "feature_std"),
        "BYOL": ("alignment", "feature_std"),
        "SimSiam": ("alignment", "feature_std"),
    } | {name: ("alignment",) for name in collapses.CHANCE}
    for name, columns in reads.items():
        assert set(columns) <= set(made[name].log_names), name
    for name, (_, number, _) in collapses.TEACHERS.items():
        assert number in made[name].get_config()
    assert {*CONFIG} <= set(made["DISSL"].get_config()) and "num_prototypes" in made["SwAV"].get_config()
    assert all("temperature" in made[name].get_config() for name in collapses.CHANCE)


# DISSL


def test_uniform_teacher():
    """Distillation and both entropies are log C, the loss is (1 + β - λ)·log C."""
    up = falling(3.1, 1.0)
    records = dissl(
        distillation=then(29, up + 0.4, FULL),
        marginal=then(29, 3.4, FULL),
        unsure=then(29, up, FULL),
        invariance=then(29, up + 0.5, FULL),
    )
    verdict, *others = judged(records)
    assert (verdict.level, verdict.kind, verdict.since, verdict.collapsed) == ("problem", "uniform_teacher", 300, True)
    assert "3.466 of log 32 = 3.466" in verdict.evidence and "λ = 2.3, β = 0.8" in verdict.evidence
    assert f"loss {-0.5 * FULL:.4g} where (1 + β - λ)·log C = {-0.5 * FULL:.4g}" in verdict.evidence
    assert "teacher_temperature" in verdict.advice and not others
    assert judged(dissl(unsure=FULL, marginal=FULL, distillation=FULL))[0].since == 10
    assert judged(records, objective="dissl") == judged(records, objective="Dis_SL") == (verdict,)


@pytest.mark.parametrize("weight", [0.5, 2.3])
def test_one_class(weight):
    """H(M) and the loss are 0; below λ = 1 + β it is λ that does it, else the learning rate."""
    zero = {"distillation": 0.0, "invariance": 0.0, "unsure": 0.0, "marginal": 0.0}
    start = dissl(weight=weight)
    end = dissl(weight=weight, classes_used=np.ones(ROWS), effective_classes=np.ones(ROWS), **zero)
    records = {name: then(20, start[name], end[name]) for name in start}
    (verdict,) = judged(records, config=CONFIG | {"maximality_weight": weight})
    assert (verdict.kind, verdict.since, verdict.collapsed) == ("one_class", 210, True)
    assert "H(M) = 0" in verdict.evidence and "loss 0" in verdict.evidence and "1 classes used" in verdict.evidence
    assert ("at least to 1 + invariance_weight (β) = 1.8" in verdict.advice) == (weight == 0.5)
    assert ("learning rate" in verdict.advice) == (weight == 2.3)


def test_one_class_after_a_divergence_says_so():
    zero = {"distillation": 0.0, "invariance": 0.0, "unsure": 0.0, "marginal": 0.0}
    records = dissl(**zero)
    records["loss"] = np.concatenate([[11.1, 47.7, 21.5], np.zeros(ROWS - 3)])
    (verdict,) = judged(records)
    assert verdict.kind == "one_class" and "rose to 47.7, at step 20" in verdict.evidence


def test_constant_teacher():
    """Every image is spread over the same five classes."""
    five = math.log(5)
    assert kinds(judged(dissl(marginal=five, unsure=five, distillation=five, invariance=five))) == ["constant_teacher"]
    assert judged(dissl(marginal=five, unsure=five, distillation=five, invariance=five))[0].collapsed
    for classes, knob in [(27, "teacher_temperature"), (2, "maximality_weight")]:
        entropy = math.log(classes)
        (verdict,) = judged(dissl(marginal=entropy, unsure=entropy, distillation=entropy, invariance=entropy))
        assert verdict.kind == "constant_teacher" and f"{knob} (" in verdict.advice


def test_few_undecided_and_changing_classes_are_warnings():
    config = CONFIG | {"maximality_weight": 0.5}
    few = judged(dissl(marginal=falling(3.46, 1.2), unsure=falling(3.1, 0.1), weight=0.5), config=config)
    assert kinds(few) == ["few_classes"] and few[0].level == "warning" and not few[0].collapsed
    assert f"H(M) = {falling(3.46, 1.2)[-1]:.3g} of at most 3.47" in few[0].evidence and "= 1.8" in few[0].advice
    hardly = judged(dissl(marginal=falling(3.46, 0.9), unsure=falling(3.1, 0.1), weight=0.5), config=config)
    assert kinds(hardly) == ["few_classes"] and hardly[0].level == "problem" and not hardly[0].collapsed
    undecided = judged(dissl(unsure=falling(3.1, 2.4), marginal=3.4))
    assert kinds(undecided) == ["uncertain"]
    assert f"{math.exp(falling(3.1, 2.4)[-1]):.3g} classes" in undecided[0].evidence
    changing = judged(dissl(invariance=falling(6.5, 4.5), beta=0.0), config=CONFIG | {"invariance_weight": 0.0})
    assert kinds(changing) == ["changing_classes"] and "invariance_weight (β), here 0, or lower" in changing[0].advice


def test_batches_smaller_than_the_classes_are_named_as_a_cause():
    """With λ > 1 + β the loss falls by spreading k classes an image up to k = C/B: λ log k outweighs (1 + β) log k."""
    config = CONFIG | {"num_classes": 4096}
    wide = dissl(unsure=falling(8.0, 5.0), marginal=7.9, marginal_entropy_bound=np.full(ROWS, math.log(128)))
    assert "C = 4096" in judged(wide, config=config)[0].advice
    assert "C = 4096" not in judged(wide, config=config, batch_size=8192)[0].advice


# The other teachers


def dino(teacher, marginal, loss, classes=4096):
    return base() | {
        "loss": np.broadcast_to(loss, ROWS).astype(float),
        "teacher_entropy": np.broadcast_to(teacher, ROWS).astype(float),
        "marginal_entropy": np.broadcast_to(marginal, ROWS).astype(float),
        "effective_classes": np.exp(np.broadcast_to(marginal, ROWS)),
        "kl": np.broadcast_to(loss, ROWS) - np.broadcast_to(teacher, ROWS),
    }


def test_dino():
    full, config = math.log(4096), {"num_prototypes": 4096}
    uniform = judged(dino(full, full, full), "DINO", config)
    assert kinds(uniform) == ["uniform_teacher"] and "Loss 8.318 of log 4096 = 8.318" in uniform[0].evidence
    assert "teacher_temperature" in uniform[0].advice
    one = judged(dino(0.0, 0.0, 0.0), "DINO", config)
    assert kinds(one) == ["one_class"] and one[0].title == "One prototype for all images"
    assert "center_momentum" in one[0].advice
    assert kinds(judged(dino(falling(8, 1.0), falling(8.2, 5), falling(8.3, 3)), "dino", config)) == ["good"]


def test_swav():
    full, config = math.log(64), {"num_prototypes": 64}
    healthy = {"code_entropy": falling(4.0, 1.0), "marginal_entropy": np.full(ROWS, 4.0), "kl": falling(0.5, 0.3)}
    assert kinds(judged(base() | healthy, "SwAV", config)) == ["good"]
    uniform = base() | healthy | {"code_entropy": np.full(ROWS, full), "loss": np.full(ROWS, full)}
    assert kinds(judged(uniform, "swav", config)) == ["uniform_teacher"]
    one = base() | healthy | {"marginal_entropy": then(20, 4.0, 0.0)}
    assert kinds(judged(one, "SwAV", config)) == ["one_class"] and judged(one, "SwAV", config)[0].since == 210


# Contrastive


@pytest.mark.parametrize(
    "objective, temperature, chance",
    [("SimCLR", 0.07, math.log(255)), ("CISSL", 0.07, math.log(256)), ("MoCoV3", 0.2, 0.8 * math.log(128))],
)
def test_contrastive_losses_at_chance(objective, temperature, chance):
    """Equal embeddings give the loss of a guess among all candidates, and a cosine of 1."""
    config = {"temperature": temperature}
    equal = base(loss=then(20, falling(5.0, 3.0), chance), alignment=then(20, 0.6, 1.0))
    (verdict,) = judged(equal, objective, config)
    assert (verdict.kind, verdict.since, verdict.collapsed) == ("same_features", 210, True)
    assert f"= {chance:.4g} with B = 128" in verdict.evidence
    guess = judged(base(loss=np.full(ROWS, chance), alignment=np.full(ROWS, 0.1)), objective, config)
    assert kinds(guess) == ["chance"] and guess[0].level == "problem" and not guess[0].collapsed
    assert "chance" not in kinds(judged(guess and base(loss=np.full(ROWS, chance)), objective, config, batch_size=None))
    assert kinds(judged(base(alignment=falling(0.1, 0.8)), objective, config)) == ["good"]


def test_the_loss_at_chance_is_that_of_the_losses():
    """The closed forms beside the losses themselves, at equal embeddings."""
    from keras_issl import losses

    equal = np.ones((2, 16, 4), "float32")
    chance = {name: of(16, 0.2) for name, (of, _) in collapses.CHANCE.items()}
    np.testing.assert_allclose(float(losses.simclr_loss(equal, temperature=0.2)), chance["SimCLR"], 1e-5)
    np.testing.assert_allclose(
        float(losses.cissl_loss(student=equal, teacher=equal, temperature=0.2)), chance["CISSL"], 1e-5
    )
    np.testing.assert_allclose(
        float(losses.moco_loss(queries=equal, keys=equal, temperature=0.2)), chance["MoCo v3"], 1e-5
    )


# The others


@pytest.mark.parametrize("objective", ["BYOL", "SimSiam"])
def test_one_projection_for_all_images(objective):
    records = base(feature_std=then(20, 0.8, 0.01), alignment=then(20, 0.7, 0.999))
    (verdict,) = judged(records, objective)
    assert (verdict.kind, verdict.since, verdict.collapsed) == ("same_features", 210, True)
    assert ("teacher_momentum" in verdict.advice) == (objective == "BYOL")
    assert kinds(judged(base(feature_std=np.full(ROWS, 0.8), alignment=falling(0.1, 0.9)), objective)) == ["good"]


def test_vicreg_and_barlow_twins():
    logs = {"invariance": falling(0.4, 0.0), "covariance": np.full(ROWS, 0.0), "feature_std": np.full(ROWS, 0.8)}
    collapsed = judged(base() | logs | {"variance": falling(1.2, 1.98)}, "VICReg")
    assert kinds(collapsed) == ["same_features"] and "variance_weight" in collapsed[0].advice
    assert kinds(judged(base() | logs | {"variance": falling(1.2, 0.2)}, "VICReg")) == ["good"]
    logs = {"invariance": np.full(ROWS, 64.0), "redundancy": np.zeros(ROWS), "feature_std": np.full(ROWS, 0.8)}
    dead = base(loss=then(10, 40.0, 64.0), correlation=then(10, 0.5, 0.0)) | logs
    found = judged(dead, "barlow_twins", {"output_dim": 64})
    assert kinds(found) == ["same_features"] and found[0].since == 110 and "64 for projections" in found[0].evidence
    assert kinds(judged(base(correlation=falling(0.1, 0.9)) | logs, "BarlowTwins")) == ["good"]


# Any run


def test_no_augmentation_is_seen_from_the_first_row_on():
    same = np.where(np.isfinite(base()["within_between"]), 0.0, np.nan)
    for objective, columns in [
        (None, {"within_between": same}),
        ("DISSL", {"kl_invariance": np.full(ROWS, 1e-7)}),
        ("SimCLR", {"alignment": np.full(ROWS, 1.0)}),
        ("BarlowTwins", {"correlation": np.full(ROWS, 0.99999)}),
    ]:
        records = (dissl() if objective == "DISSL" else base()) | columns
        if objective:
            del records["within_between"]
        (verdict,) = judged(records, objective)
        assert (verdict.level, verdict.kind, verdict.since) == ("problem", "no_augmentation", 10), objective
        assert "augmentation" in verdict.advice
        late = {name: np.concatenate([[0.5], values[1:]]) for name, values in columns.items()}
        assert kinds(judged(records | late, objective)) == ["good"]
    # Views that differ a little, of an encoder that agrees on them: no verdict.
    assert kinds(judged(base(within_between=same + 0.01, kl_invariance=np.zeros(ROWS)))) == ["good"]


def test_views_that_agree_because_all_do_are_no_copies():
    """A uniform teacher and equal embeddings have views without distance, too, from the first row on."""
    uniform = dissl(**UNIFORM)
    equal = base(loss=np.full(ROWS, math.log(255)), alignment=np.ones(ROWS))
    for records in (uniform, equal):
        del records["within_between"]
    assert kinds(judged(uniform)) == ["uniform_teacher"]
    assert kinds(judged(equal, "SimCLR", {"temperature": 0.07})) == ["same_features"]


def test_diverged_by_nan():
    (verdict,) = judged(base(loss=then(30, falling(5, 1), np.nan)))
    assert (verdict.level, verdict.kind, verdict.since) == ("problem", "diverged", 310)
    assert f"learning rate of {base()['learning_rate'][30]:.3g}" in verdict.evidence
    assert "Lower the learning rate" in verdict.advice
    assert kinds(judged(base(loss=then(30, falling(5, 1), np.inf)))) == ["diverged"]
    assert kinds(judged(base(loss=np.full(ROWS, np.nan)))) == ["diverged"]
    assert kinds(judged(dissl(loss=then(30, -3.0, np.nan)))) == ["diverged"]
    once = falling(5, 1)
    once[20] = np.nan
    (verdict,) = judged(base(loss=once))
    assert (verdict.level, verdict.kind, verdict.since) == ("warning", "diverged", None)
    assert "Between steps 210 and 210" in verdict.evidence


def test_diverged_by_rising_and_a_jump_that_recovers():
    (verdict,) = judged(base(loss=then(30, falling(5, 1), 400.0)))
    assert (verdict.kind, verdict.since) == ("diverged", 310)
    assert "Loss 400, 5 at the start and 1" in verdict.evidence
    loss = falling(5, 1)
    loss[15:25] = 50
    (verdict,) = judged(base(loss=loss))
    assert (verdict.level, verdict.kind, verdict.since) == ("warning", "diverged", None)
    assert "Between steps 160 and 250" in verdict.evidence and not verdict.collapsed
    loss[15:25] = 5.5  # a little above its start is noise
    assert kinds(judged(base(loss=loss))) == ["good"]


def test_a_collapse_that_recovers_is_a_warning():
    unsure, marginal = falling(3.1, 0.6), falling(3.46, 3.31)
    unsure[15:25] = marginal[15:25] = 0.0
    found = judged(dissl(unsure=unsure, marginal=marginal))
    assert kinds(found) == ["one_class"] and found[0].level == "warning" and found[0].since is None
    assert "Between steps 160 and 250" in found[0].evidence and not found[0].collapsed
    unsure[25:] = marginal[25:] = 0.0
    unsure[18], marginal[18] = 0.6, 3.3  # `since` counts from the last break
    assert judged(dissl(unsure=unsure, marginal=marginal))[0].since == 200


def test_no_learning():
    rng = np.random.default_rng(0)
    noise = 5 + 0.01 * rng.normal(size=ROWS)
    stuck = np.where(np.isfinite(base()["within_between"]), 0.85, np.nan)
    unknown = np.full(ROWS, np.nan)
    for features in (stuck, unknown):  # that the features are as they were at the start goes without saying
        assert kinds(judged(base(loss=noise, within_between=features))) == ["flat"]
    slow = -1.36 - 0.06 * np.linspace(0, 1, ROWS)  # 3 % between the thirds: too little if the features stay as they are
    assert kinds(judged(base(loss=slow, within_between=stuck))) == ["flat"]
    assert kinds(judged(base(loss=slow, within_between=unknown))) == ["good"]
    assert kinds(judged(base(loss=noise - 1000))) == ["good"]  # a constant hides the change, the features show it
    (verdict,) = judged(base(loss=noise, learning_rate=np.zeros(ROWS)))
    assert (verdict.level, verdict.kind) == ("problem", "no_learning_rate")
    assert kinds(judged(base(loss=5 - 0.5 * np.linspace(0, 1, ROWS)))) == ["good"]


def test_directions():
    sparse = np.isfinite(base()["effective_rank"])
    one = judged(base(effective_rank=np.where(sparse, falling(100, 1.2), np.nan)))
    assert kinds(one) == ["few_directions"] and one[0].collapsed and "features 1.59, 100 at" in one[0].evidence
    few = judged(base(effective_rank=np.where(sparse, falling(100, 5), np.nan)))
    assert kinds(few) == ["few_directions"] and few[0].level == "warning" and not few[0].collapsed
    assert "DISSL: raise num_classes" in few[0].advice


def test_invariance_of_the_features():
    sparse = np.isfinite(base()["within_between"])
    for last, level in [(0.95, "problem"), (0.8, "warning")]:
        (verdict,) = judged(base(within_between=np.where(sparse, falling(0.85, last), np.nan)))
        assert (verdict.kind, verdict.level) == ("not_invariant", level)
    assert kinds(judged(base(within_between=np.where(sparse, falling(0.85, 0.6), np.nan)))) == ["good"]  # on its way


@pytest.mark.parametrize("classes, stuck, learns", [(10, 0.11, 0.3), (2, 0.51, 0.7), (1000, 0.001, 0.01)])
def test_online_probe_at_chance(classes, stuck, learns):
    (verdict,) = judged(base(online_top1=np.full(ROWS, stuck)), online_classes=classes)
    assert (verdict.kind, verdict.level) == ("probe_at_chance", "warning") and "Online top-1" in verdict.evidence
    assert kinds(judged(base(online_top1=np.full(ROWS, learns)), online_classes=classes)) == ["good"]
    assert kinds(judged(base(online_top1=np.full(ROWS, stuck)), online_classes=None)) == ["good"]


def test_slow_input():
    (verdict,) = judged(base(input_share=then(10, 0.1, 0.6)))
    assert (verdict.kind, verdict.level, verdict.since) == ("slow_input", "warning", 110)
    assert "60 %" in verdict.evidence and "500 images a second" in verdict.evidence
    assert "memory_limit" in verdict.advice
    assert kinds(judged(base(input_share=then(1, 0.9, 0.1)))) == ["good"]  # the first batches fill the buffers


# Too early


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_few_rows_are_not_judged(rows):
    for records in (base(rows), dissl(rows, unsure=FULL, marginal=FULL, distillation=FULL, invariance=FULL)):
        (verdict,) = judged(records)
        assert (verdict.kind, verdict.level) == ("early", "warning") and f"{rows} rows" in verdict.evidence
    assert kinds(judged({})) == ["early"]


def test_warm_up_is_not_judged():
    warm = {"learning_rate": np.linspace(0.0001, 0.004, ROWS)}
    uniform = {"unsure": FULL, "marginal": FULL, "distillation": FULL, "invariance": FULL}
    assert kinds(judged(dissl(**uniform, **warm))) == ["early"]
    zero = {"unsure": then(20, 1.0, 0.0), "marginal": then(20, 3.3, 0.0), "invariance": then(20, 1.5, 0.0)}
    assert kinds(judged(dissl(**zero, **warm))) == ["one_class", "early"]  # that is no longer the start
    assert kinds(judged(base(loss=then(3, 5.0, np.nan, rows=4), rows=4))) == ["diverged", "early"]


# What must not change a verdict

UNIFORM = {"unsure": FULL, "marginal": FULL, "distillation": FULL, "invariance": FULL}
SLOW = {"input_share": np.full(ROWS, 0.6)}
RUNS = {
    "good": dissl(),
    "uniform": dissl(**UNIFORM),
    "few": dissl(marginal=falling(3.46, 1.0), unsure=falling(3.1, 0.1)),
    "nan": dissl(loss=then(30, -3.0, np.nan), **SLOW),
}


@pytest.mark.parametrize("name", RUNS)
def test_steps_scale_and_only_since_with_them(name):
    records = RUNS[name]
    one, ten = judged(records), judged(records | {"step": 10 * records["step"]})
    assert kinds(one) == kinds(ten)
    assert [v.since and 10 * v.since for v in one] == [v.since for v in ten]


@pytest.mark.parametrize("name", RUNS)
def test_lists_unknown_columns_and_rows_written_twice_change_nothing(name):
    records, found = RUNS[name], judged(RUNS[name])
    as_lists = {key: [None if np.isnan(x) else x for x in values] for key, values in records.items()}
    assert judged(as_lists | {"unknown": [1.0] * ROWS}) == found
    # A run that went back to a checkpoint writes the rows since then again.
    twice = {key: np.concatenate([values[:30], values[25:]]) for key, values in records.items()}
    assert judged(twice) == found


@pytest.mark.parametrize("how", ["missing", "nan"])
@pytest.mark.parametrize("name", RUNS)
def test_any_column_may_be_missing_or_empty(name, how):
    """No error, and nothing is found that is not there with all columns; an empty loss is a loss of NaN."""
    records, full = RUNS[name], set(kinds(judged(RUNS[name])))
    for column in records:
        less = {key: values for key, values in records.items() if key != column}
        if how == "nan":
            less |= {column: np.full(ROWS, np.nan)}
        found = set(kinds(judged(less)))
        # A uniform teacher's loss does not move: without its entropies that is all there is to see.
        more = {"flat"} if name == "uniform" and "entropy" in column else set()
        more |= {"diverged"} if (column, how) == ("loss", "nan") else set()
        assert found <= full | {"good"} | more, column


def test_without_configuration_and_names_nothing_fails():
    for records in RUNS.values():
        for objective in (None, "MyOwn", *recipes.OBJECTIVES):
            assert judge_training(records, objective=objective)
    assert kinds(judge_training(RUNS["uniform"], objective="DISSL")) == ["constant_teacher"]  # of an unknown C


def test_problems_come_first_and_all_have_words():
    found = judged(RUNS["nan"])
    assert [v.level for v in found] == ["problem", "warning"] and kinds(found) == ["diverged", "slow_input"]
    for records in RUNS.values():
        for verdict in judged(records):
            text = f"{verdict.title} {verdict.evidence} {verdict.advice}"
            assert verdict.title and verdict.evidence and "  " not in text and not re.search(r"\bnan\b", verdict.title)


def test_records_that_are_no_columns_are_refused():
    with pytest.raises(ValueError, match=r"`records` should hold columns of one length. Received lengths"):
        judge_training({"step": [1, 2], "loss": [1.0]})
    with pytest.raises(ValueError, match=r"`records\['loss'\]` should have one axis. Received shape: \(2, 1\)"):
        judge_training({"loss": [[1.0], [2.0]]})
    with pytest.raises(ValueError, match=r"`records\['loss'\]` should hold numbers"):
        judge_training({"loss": ["high", "low"]})
