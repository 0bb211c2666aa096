"""`Result`: its JSON, whole and hostile, its protocol and its table, which refuses unlike numbers."""

import dataclasses
import json
import os
import platform
import re

import keras
import numpy as np
import pytest

from keras_issl import results
from keras_issl.results import Result, table

pytestmark = pytest.mark.backend_independent

DATA = {"name": "cells/test", "split": "test", "fingerprint": "f", "labels_sha256": "l", "examples": 500, "classes": 9}


def made(name="model", *, value=0.9, probe=(), test=(), train=(), representation=(), **changes):
    fields = {
        "metrics": {"top1": {"value": value, "low": value - 0.02, "high": value + 0.02, "sd": 0.0, "seeds": 1}},
        "probe": {"name": "LinearProbe", "family": "linear", "parameters": {"folds": 5}} | dict(probe),
        "test": DATA | {"also_in_train": 0, "of_unknown_class": 0} | dict(test),
        "train": DATA | {"name": "cells/train", "split": "train", "fingerprint": "g", "examples": 2000} | dict(train),
        "representation": {"name": name, "feature_dim": 512, "probe": "linear"} | dict(representation),
        "selected_on": "held-out part of train",
        "seeds": [0],
        "bootstrap": 1000,
    }
    return Result(**fields | changes)


@pytest.fixture
def saved(tmp_path):
    """A path, and what `save` wrote there, as a dict."""
    path = tmp_path / "result.json"
    made().save(path)
    return path, json.loads(path.read_text())


# JSON ----------------------------------------------------------------------------------------------------------------


def test_json_holds_all_of_it(tmp_path):
    result = made(
        few_shot={"1": {"mean": 0.5, "sd": 0.1, "draws": 3}, "all": {"mean": 0.9, "sd": 0.0, "draws": 1}},
        per_class=[{"label": "é | <b>", "examples": 3, "accuracy": 1.0}],
        confusions=[{"label": "a", "guess": "b", "count": 1.5, "share": 0.5}],
        versions=results.versions(),
        hardware=results.hardware(),
        seconds=1.5,
        date="2026-11-01T00:00:00+00:00",
    )
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result
    assert json.loads((tmp_path / "result.json").read_text())["format"] == 1
    assert os.listdir(tmp_path) == ["result.json"]


def test_numpy_numbers_become_plain_ones(tmp_path):
    metrics = {"top1": {"value": np.float32(0.5), "low": np.float64(0.4), "high": 1, "sd": 0, "seeds": np.int64(2)}}
    result = made(metrics=metrics, probe={"parameters": {"k": (np.int64(3), np.inf), "engine": print}})
    assert result.probe["parameters"] == {"k": [3, "inf"], "engine": "<built-in function print>"}
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result


def test_a_save_is_whole_or_not_at_all(saved):
    path, _ = saved
    made(value=0.1).save(path)
    assert Result.load(path).metrics["top1"]["value"] == 0.1
    folder = path.parent / "folder"
    folder.mkdir()
    with pytest.raises(OSError):
        made().save(folder)
    assert sorted(os.listdir(path.parent)) == ["folder", path.name]


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Result)])
def test_a_missing_entry_is_named(saved, key):
    path, content = saved
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"result.json: A result should have `{key}`"):
        Result.load(path)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (["extra"], 1, "'extra'"),
        (["metrics", "top1", "extra"], 1, "`metrics.top1` should have entries among .*'extra'"),
        (
            ["metrics", "top1", "value"],
            "0.9",
            r"`metrics.top1.value` should be of type int or float. Received: '0.9' \(str",
        ),
        (["metrics", "top1", "value"], True, r"`metrics.top1.value` .* \(bool"),
        (["metrics", "top1", "low"], 0.99, "`metrics.top1` should have low <= value <= high"),
        (["metrics", "top1"], [], "`metrics.top1` should be a dict"),
        (["metrics"], {}, "`metrics` should hold a metric"),
        (["test", "examples"], -1, "`test.examples` should be 0 or more"),
        (["test", "examples"], 1.5, "`test.examples` should be of type int or None"),
        (["test", "path"], "/home/me", "`test` should have entries among"),
        (["seeds"], [0, "1"], r"`seeds\[1\]` should be of type int"),
        (["seeds"], 0, "`seeds` should be a list"),
        (["probe", "parameters"], [], "`probe.parameters` should be of type dict"),
        (["mode"], "both", "`mode` should be one of"),
        (["selected_on"], "train", "`selected_on` should be one of"),
        (["few_shot"], {"1": {"mean": 1}}, "`few_shot.1` should have `draws`, `sd`"),
        (["per_class"], [{"label": 1}], r"`per_class\[0\]` should have"),
        (["format"], 2, "`format` should be 1"),
        (["format"], True, "`format` should be 1"),
        (["format"], None, "`format` should be 1"),
    ],
)
def test_a_wrong_entry_is_named_with_the_file(saved, place, value, words):
    path, content = saved
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"result.json: .*{words}"):
        Result.load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "should be JSON written by `Result.save`"),
        (b"{", "should be JSON"),
        (b"\xff\xfe", "should be JSON"),
        (b"[" * 100_000, "should be JSON"),
        (b'{"seconds": NaN}', "NaN is no JSON"),
        (b'{"seconds": Infinity}', "Infinity is no JSON"),
        (b'{"format": 1, "format": 1}', "a key stands there twice"),
        (b"[]", "should hold a JSON object. Received: list"),
        (b"null", "should hold a JSON object. Received: NoneType"),
        (b'{"format": 1}', "should have"),
    ],
)
def test_what_is_no_result_is_refused_with_its_name(tmp_path, content, words):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"result.json.*{words}"):
        Result.load(path)


def test_an_infinite_number_is_refused(saved):
    path, _ = saved
    path.write_text(path.read_text().replace('"seconds": null', '"seconds": 1e999'))
    with pytest.raises(ValueError, match="`seconds` should be of type"):
        Result.load(path)


def test_a_result_made_by_hand_needs_no_more_than_is_known(tmp_path):
    """The paper's Tiny-ImageNet number, whose sweep was chosen on test."""
    result = Result({"top1": {"value": 0.451}}, {"name": "SGD"}, {"name": "Tiny-ImageNet"}, selected_on="test")
    assert result.metrics == {"top1": {"value": 0.451, "low": None, "high": None, "sd": 0.0, "seeds": 1}}
    assert "chosen on test, so that the figures are optimistic" in result.protocol()
    assert "data that are not recorded" in result.protocol() and "scored once" not in result.protocol()
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == result


# Words ---------------------------------------------------------------------------------------------------------------


def test_the_protocol_is_one_sentence():
    sentence = made(probe={"selection": "C = 10, the best of 6\nby accuracy; held out."}).protocol()
    assert sentence == (
        "LinearProbe (linear family) on frozen features of model (512 dimensions); fitted on cells/train (2,000 "
        "examples of 9 classes); hyperparameters chosen on a held-out part of the training labels (C = 10, the "
        "best of 6 by accuracy, held out); tested on cells/test (500 examples of 9 classes), scored once per fitted "
        "probe; 95 % intervals from 1,000 bootstrap resamples of the test examples."
    )


def test_the_protocol_tells_what_a_reader_must_know():
    assert "trained online, beside a moving encoder" in made(mode="online").protocol()
    assert "fixed beforehand" in made(selected_on="nothing").protocol()
    assert "trained for an MLP probe, another family" in made(representation={"probe": "mlp"}).protocol()
    assert "7 of them have the features of a training example" in made(test={"also_in_train": 7}).protocol()


def test_metadata_are_figures_with_a_protocol():
    few = {"1": {"mean": 0.5, "sd": 0.01, "draws": 3}, "0.01": {"mean": 0.7, "sd": 0.0, "draws": 1}}
    result = made(few_shot={**few, "all": {"mean": 0.9, "sd": 0.0, "draws": 1}})
    first, one, percent = result.to_metadata()
    assert first == {
        "dataset": "cells", "split": "test", "metric": "top-1", "unit": "%", "value": 90.0, "low": 88.0, "high": 92.0,
        "protocol": result.protocol().rstrip("."),  # the card puts it in a sentence of its own
    }  # fmt: skip
    assert (one["metric"], one["value"], one["sd"]) == ("top-1 from 1 label a class", 50.0, 1.0)
    assert "fitted on 1 label a class of cells/train" in one["protocol"] and "3 draws" in one["protocol"]
    assert percent["metric"] == "top-1 from 1 % of the labels" and "sd" not in percent
    assert json.loads(json.dumps(result.to_metadata())) == result.to_metadata()


def test_a_printed_result_is_its_figures_and_protocol():
    result = made(metrics={"mean_per_class": {"value": 0.5, "low": 0.4, "high": 0.6, "sd": 0.01, "seeds": 2}})
    assert str(result).startswith("accuracy, mean over classes 50.00 (40.00–60.00) ± 1.00, in %. LinearProbe")


def test_the_environment_has_no_names_of_machines():
    found = results.versions()
    assert found["keras"] == keras.__version__ and found[found["backend"]][0].isdigit()
    assert list(found) == ["keras_issl", "keras", "backend", found["backend"], "numpy", "pillow", "python"]
    machine = results.hardware()
    assert machine["cpu"] and machine["cores"] >= 1 and platform.node() not in str(machine)


def test_a_representation_is_told_without_paths():
    provenance = {"preset": "/home/me/runs/cells/preset", "probe": "mlp", "image_shape": (8, 8, 3), "dataset": "cells"}
    found = results.representation(provenance, feature_dim=64)
    expected = {"name": "cells", "feature_dim": 64, "preset": "cells", "probe": "mlp", "image_shape": [8, 8, 3]}
    assert found == expected
    assert made(representation=found).representation == expected  # a `Result` takes it
    assert results.representation({"encoder": "resnet"}) == {"name": "resnet", "feature_dim": None, "encoder": "resnet"}
    assert (
        results.representation({}, name="mine")["name"] == "mine" and results.representation({})["name"] == "features"
    )


def test_validation_scores_are_kept_and_optional(saved):
    path, content = saved
    assert made().probe["validation_scores"] == {}
    scores = {"0.1": 0.5, "1e-06": np.float64(0.75)}
    made(probe={"validation_scores": scores}).save(path)
    assert Result.load(path).probe["validation_scores"] == scores
    del content["probe"]["validation_scores"]  # a file of before
    path.write_text(json.dumps(content))
    assert Result.load(path) == made()
    for bad in ({"1": "0.5"}, {"1": np.nan}, {1.0: 0.5}, [0.5]):
        with pytest.raises(ValueError, match="`probe.validation_scores"):
            made(probe={"validation_scores": bad})


def test_caveats_are_the_same_in_words_footnotes_and_protocol():
    odd = made(
        mode="online",
        selected_on="test",
        representation={"probe": "mlp"},
        test={"also_in_train": 1200, "of_unknown_class": 2},
    )
    assert made().caveats == ()
    assert [caveat.title for caveat in odd.caveats] == [
        "an online number",
        "hyperparameters chosen on the test images",
        "a probe of another family than the features were trained for",
        "test images with the features of a training image",
        "test images of a class unknown to train",
    ]
    _, _, notes = rows(table(odd))
    assert [note.split(" ", 1)[1] for note in notes] == [f"{caveat.note}." for caveat in odd.caveats]
    assert odd.caveats[3].note == "1,200 test examples have the features of a training example, bit for bit"
    assert "2 of them of a class that train does not have, counted as errors" in odd.protocol()
    assert all(caveat.advice.endswith(".") for caveat in odd.caveats)


def test_names_and_figures_of_a_result():
    one = made(test={"name": "cells"}, train={"name": None})
    assert (one.test_name, one.train_name) == ("cells/test", "unnamed data/train") and made().test_name == "cells/test"
    assert one.selection == "offline, hyperparameters chosen on a held-out part of train"
    assert made(selected_on="nothing", mode="online").selection == "online, hyperparameters fixed beforehand"
    assert made(selected_on="test").selection == "offline, hyperparameters chosen on test"
    assert (one.figure("top1"), one.figure("top1", 1), one.figure("top5")) == (
        "90.00 (88.00–92.00)",
        "90.0 (88.0–92.0)",
        None,
    )


# Tables --------------------------------------------------------------------------------------------------------------


def rows(text):
    """Cells of the table's rows, and the lines under it."""
    lines = text.split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return cells[0], cells[2:], [line for line in lines if line and not line.startswith("|")]


def test_a_table_has_a_row_each_and_columns_for_what_differs(tmp_path):
    made("other", value=0.8, seeds=[0, 1], representation={"feature_dim": 64}).save(tmp_path / "other.json")
    header, found, notes = rows(table([made(), tmp_path / "other.json"]))
    assert header == ["representation", "probe", "data", "top-1 (%, 95 % interval)", "seeds", "dimensions"]
    assert found == [
        ["model", "LinearProbe", "cells/test", "90.00 (88.00–92.00)", "1", "512"],
        ["other", "LinearProbe", "cells/test", "80.00 (78.00–82.00)", "2", "64"],
    ]
    assert notes == []
    assert len(rows(table(made()))[1]) == 1 and len(rows(table(str(tmp_path / "other.json")))[1]) == 1


def test_a_table_has_the_deviation_over_seeds():
    figures = {"value": 0.9, "low": None, "high": None, "sd": 0.012, "seeds": 3}
    header, found, _ = rows(table([made(metrics={"top5": figures})], metric="top5"))
    assert header[3] == "top-5 (%, ± sd over seeds)" and found[0][3] == "90.00 ± 1.20"


UNLIKE = {  # what is not comparable -> changes, what the refusal names, the footnote
    "mode": ({"mode": "online"}, r"mode: offline \(row 1, 3\); online \(row 2\)", "online: the probe learned beside"),
    "selection": ({"selected_on": "test"}, "selection: not on test", "hyperparameters chosen on test, so"),
    "fingerprint": ({"test": {"fingerprint": "x"}}, "test set: .*set 1.*set 2", "test set: .*, elsewhere"),
    "test labels": ({"test": {"labels_sha256": "x"}}, "test set", "test set: .*, elsewhere"),
    "test size": ({"test": {"examples": 50}}, "test set: .*50 examples", "test set: .*50 examples"),
    "train size": ({"train": {"examples": 20}}, "train set: .*20 examples", "train set: .*20 examples"),
    "train images": ({"train": {"fingerprint": "x"}}, "train set", "train set"),
    "family": ({"probe": {"family": "mlp"}, "representation": {"probe": "mlp"}}, "linear .*; mlp", "family: mlp"),
    "no family": ({"probe": {"name": "KNNProbe", "family": None}}, "family: linear .*; KNNProbe", "family: KNNProbe"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "refusal", "footnote"), UNLIKE.values(), ids=UNLIKE)
def test_unlike_numbers_share_no_column_without_a_mark(changes, refusal, footnote):
    unlike = [made("a"), made("b", **changes), made("c")]
    with pytest.raises(ValueError, match=f"`results` should be comparable.*{refusal}.*mark=True"):
        table(unlike)
    _, found, notes = rows(table(unlike, mark=True))
    assert ["†" in row[3] for row in found] == [False, True, False]
    assert len(notes) == 1 and notes[0].startswith("† ")
    assert re.search(footnote, notes[0])
    assert rows(table([unlike[1], unlike[1]]))[1]  # alike among themselves


def test_every_kind_of_oddity_has_its_symbol():
    unlike = [made(str(i), **changes) for i, (changes, _, _) in enumerate(UNLIKE.values())]
    _, found, notes = rows(table([made(), made(), *unlike], mark=True))
    symbols = [note.split()[0] for note in notes]
    assert symbols[:4] == list("†‡§¶") and symbols[4] == "(5)" and len(set(symbols)) == len(symbols)
    for symbol in symbols:
        assert any(symbol in row[3] for row in found)


def test_online_and_test_selected_numbers_have_footnotes_also_among_their_like():
    _, found, notes = rows(table([made(mode="online", selected_on="test")] * 2))
    assert len(notes) == 2 and all("† ‡" in row[3] for row in found)


def test_mismatched_and_overlapping_rows_have_footnotes():
    _, found, notes = rows(table([made(), made(representation={"probe": "mlp"}), made(test={"also_in_train": 3})]))
    assert "trained for an MLP probe" in notes[0] and "3 test examples have the features of a training" in notes[1]
    assert [row[3][-1] for row in found] == [")", "†", "‡"]


def test_unknown_data_do_not_make_peace_between_two_that_differ():
    unknown = Result({"top1": {"value": 0.5}}, {"name": "SGD", "family": "linear"}, {"name": "cells/test"})
    table([made(), unknown])
    for order in ([0, 1, 2], [2, 0, 1], [0, 2, 1]):
        three = [made(), made(test={"fingerprint": "x"}), unknown]
        with pytest.raises(ValueError, match="test set"):
            table([three[i] for i in order])


def test_two_of_which_different_things_are_known_share_no_set_with_a_third():
    """The first and the third agree in what both know, and so do the second and the third; not all three."""
    sets = {"labels_sha256": None}, {"labels_sha256": "x"}, {"fingerprint": None}
    for order in ([0, 1, 2], [2, 1, 0], [0, 2, 1]):
        with pytest.raises(ValueError, match="test set"):
            table([made(test=sets[i]) for i in order])


def test_one_dataset_at_two_image_sizes_is_one_dataset():
    """The fingerprint is of pixels as loaded: between sizes, name, number and labels tell."""
    small = {"representation": {"image_shape": [8, 8, 3]}}
    large = {
        "representation": {"image_shape": [32, 32, 3]},
        "test": {"fingerprint": "x"},
        "train": {"fingerprint": "y"},
    }
    assert "32 × 32 × 3" in table([made(**small), made(**large)])
    for change in ({"labels_sha256": "x"}, {"name": "other/test"}, {"examples": 1}):
        with pytest.raises(ValueError, match="test set"):
            table([made(**small), made(**large | {"test": {"fingerprint": "x"} | change})])


@pytest.mark.parametrize(
    "name", ["a | b", "<script>alert(1)</script>", "[x](http://y)", "**bold** `code`", "a\nb\r| c", "_x_ ~y~"]
)
def test_markup_in_names_shows_as_text(name):
    text = table([made(name, probe={"name": name}, test={"name": name}), made(mode="online")], mark=True)
    lines = [line for line in text.split("\n") if line.startswith("|")]
    assert len(lines) == 4 and len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    for mark in "<>[]`*~|":
        for line in lines[2:]:
            inner = line.strip("| ").replace(" | ", "")
            assert inner.count(mark) == inner.count(f"\\{mark}")
    assert "\r" not in text and made(name).protocol().count("\n") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "at least one Result"),
        (([{"top1": 1}],), "should hold Results, or paths"),
        (([None],), "should hold Results, or paths"),
        (([made()], "top5"), r"`metric` should be one of \['top1'\], which row 1 has. Received: 'top5'"),
    ],
)
def test_what_is_no_result_makes_no_table(arguments, words):
    with pytest.raises(ValueError, match=words):
        table(*arguments)


def by_hand(name, value=0.5, **more):
    return results.Result({"top1": {"value": value}}, {"name": "SGDProbe", "family": "linear"}, {"name": name, **more})


def test_other_test_sets_without_fingerprints_are_told_by_their_names():
    with pytest.raises(ValueError, match="test set"):
        results.table([by_hand("Tiny-ImageNet"), by_hand("CIFAR-10")])
    with pytest.raises(ValueError, match="test set"):
        results.table([by_hand("A", split="val"), by_hand("A", split="train")])
    assert "†" not in results.table([by_hand("A", split="val"), by_hand("A", split="val")])


@pytest.mark.parametrize(
    "metric, message",
    [
        ({"value": 45.1}, "not percent"),
        ({"value": -0.5}, "not percent"),
        ({"value": 0.9, "low": 0.1, "high": 0.2}, "low <= value <= high"),
    ],
)
def test_impossible_metrics(metric, message):
    with pytest.raises(ValueError, match=message):
        results.Result({"top1": metric}, {"name": "SGDProbe"}, {"name": "A"})
