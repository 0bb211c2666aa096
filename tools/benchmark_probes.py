"""Speed of the probes against scikit-learn and plain NumPy: one run, ratios, one Markdown table.

    python tools/benchmark_probes.py                           # everything a CPU can show
    python tools/benchmark_probes.py --only small,knn --rounds 7
    python tools/benchmark_probes.py --converged small         # accuracy where scikit-learn's solver has converged
    KERAS_BACKEND=jax python tools/benchmark_probes.py --gpu   # ImageNet's size, on an accelerator

Each contestant lives in a process of its own. They take turns, one running while the others wait, so that other load on
the machine hits all alike; a ratio is the median over the rounds of the ratios within a round, beside the least and the
greatest.

The features are made: class means and noise in a few hundred directions of decaying size, mixed over all features, as
the features of a trained encoder are. Sections:

- small: 15,000 x 512, 10 classes, 7 strengths. `LinearProbe` against scikit-learn's `LogisticRegression` (lbfgs, its
  own tolerance) for the same protocol: each strength on the same four fifths of train, scored on the last, the best
  fitted again on all. Both are given the same float32 features, centred and of mean squared norm 1.
- isotropic: the same sizes with the same noise in all directions, which scikit-learn's solver finds easy.
- large: as small, with 50,000 x 2,048, 200 classes, 5 strengths.
- knn: `KNNProbe` with four k, 10,000 queries over 50,000 x 2,048, against a float32 matrix product and `argpartition`.
- gpu: 1.28M x 2,048, 1,000 classes, 5 strengths: `LinearProbe` alone, in seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TAG = "@@"  # before what a worker says to the parent: libraries print too
# section -> examples, test examples, features, classes, strengths
SEVEN = (1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4)
LINEAR = {
    "small": (15_000, 20_000, 512, 10, SEVEN),
    "isotropic": (15_000, 20_000, 512, 10, SEVEN),
    "large": (50_000, 10_000, 2_048, 200, (1e-1, 1e0, 1e1, 1e2, 1e3)),
}
KNN = (50_000, 10_000, 2_048, 200)
GPU = (1_280_000, 50_000, 2_048, 1_000, (1e-1, 1e0, 1e1, 1e2, 1e3))
GOALS = {"small": 3.0, "isotropic": 3.0, "large": 3.0, "knn": 1 / 1.2, "gpu": 180.0}
SECTIONS = ("small", "isotropic", "large", "knn")
CONTESTANTS = dict.fromkeys(LINEAR, ("scikit-learn", "LinearProbe"))
CONTESTANTS["knn"] = ("product and top-k", "KNNProbe")


def isotropic_features(size, dim, classes, seed=0):
    """(N, D) float32 class means and unit noise, of mean squared norm about 1, and their labels (N,)."""
    rng = np.random.default_rng(seed)
    means = 0.08 * rng.standard_normal((classes, dim), np.float32)
    labels = rng.integers(classes, size=size)
    return (means[labels] + rng.standard_normal((size, dim), np.float32)) / np.float32(dim**0.5), labels


def made_features(size, dim, classes, seed=0, block=16_384):
    """(N, D) float32 features like an encoder's, centred and of mean squared norm 1, and their labels (N,)."""
    rng = np.random.default_rng(seed)
    rank = min(dim, 256)
    spectrum = np.arange(1, rank + 1, dtype=np.float32) ** -0.6  # standard deviations along the directions
    means = 0.16 * (classes / 10) ** 0.17 * rng.standard_normal((classes, rank), np.float32)
    mixing = rng.standard_normal((rank, dim), np.float32) * rng.lognormal(0, 0.5, dim).astype(np.float32)
    labels = rng.integers(classes, size=size)
    x = np.empty((size, dim), np.float32)
    for start in range(0, size, block):
        own = labels[start : start + block]
        latent = (means[own] + rng.standard_normal((len(own), rank), np.float32)) * spectrum
        noise = rng.standard_normal((len(own), dim), np.float32)
        x[start : start + block] = latent @ mixing + 0.3 * noise
    x -= x.mean(axis=0)
    x /= np.sqrt(np.einsum("nd,nd->", x, x, dtype=np.float64) / size).astype(np.float32)
    return x, labels


# -------------------------------------------------------------------------------------- contestants


def linear_probe(train, test, strengths):
    """A function that fits and returns test accuracy."""
    from keras_issl.probes import LinearProbe

    def run():
        probe = LinearProbe(strengths, standardize=False).fit(*train)
        return probe.score(*test), probe.selection_

    return run


def scikit_learn(train, test, strengths):
    """The protocol of `LinearProbe` as one writes it with scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    from keras_issl.probes.selection import held_out_parts

    x, y = train
    part = held_out_parts(y, 5, 0)[0]

    def fitted(strength, x, y):
        return LogisticRegression(C=strength, max_iter=10_000).fit(x, y)

    def run():
        scores = {strength: fitted(strength, x[~part], y[~part]).score(x[part], y[part]) for strength in strengths}
        best = max(scores, key=scores.get)
        return fitted(best, x, y).score(*test), f"C={best:g}"

    return run


def knn_probe(train, test):
    """A function that classifies the queries by several k; the search itself, not the choice of k, is timed."""
    from keras_issl.probes import knn

    probe = knn.KNNProbe().fit(*train)

    def run():
        return max(probe.scores_by_k(*test).values()), probe.selection_

    return run


def plain_search(train, test, neighbours=200, block=2_048):
    """The least that a search has to do: similarities of a block of queries, and the largest of each row."""
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x, _ in (train, test))

    def run():
        for start in range(0, len(queries), block):
            similarity = queries[start : start + block] @ bank.T  # (n, N)
            index = np.argpartition(similarity, -neighbours, axis=1)[:, -neighbours:]
            np.take_along_axis(similarity, index, axis=1)
        return None, ""

    return run


def worker(section, who):
    """Makes the features, then runs once for each line from the parent."""
    sys.path.insert(0, str(ROOT))
    size, tested, dim, classes, *strengths = KNN if section == "knn" else LINEAR[section]
    x, y = (isotropic_features if section == "isotropic" else made_features)(size + tested, dim, classes)
    train, test = (x[:size], y[:size]), (x[size:], y[size:])
    makers = {"LinearProbe": linear_probe, "scikit-learn": scikit_learn}
    makers |= {"KNNProbe": knn_probe, "product and top-k": plain_search}
    run = makers[who](train, test, *strengths)
    print(TAG + json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        accuracy, note = run()
        print(TAG + json.dumps([time.perf_counter() - began, accuracy, note]), flush=True)


class Contestant:
    """A process that waits for its turn."""

    def __init__(self, section, who):
        command = [sys.executable, __file__, "--worker", json.dumps([section, who])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def turn(self):
        """[seconds, accuracy, note] of one run."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith(TAG):
                return json.loads(line[len(TAG) :])
        raise RuntimeError(f"A contestant ended with code {self.process.wait()}; see its message above.")


# --------------------------------------------------------------------------------------- the tables


def compare(section, rounds):
    """One row of the table: the contestants in turns."""
    whos = CONTESTANTS[section]
    contestants = [Contestant(section, who) for who in whos]
    turns = []
    for number in range(rounds):
        order = range(2) if number % 2 == 0 else reversed(range(2))
        found = {i: contestants[i].turn() for i in order}
        turns.append([found[0], found[1]])
        ratio = found[0][0] / found[1][0]
        print(f"{section}: {found[0]} against {found[1]}: ratio {ratio:.2f}", file=sys.stderr, flush=True)
    for contestant in contestants:
        contestant.close()
    ratios = [theirs[0] / ours[0] for theirs, ours in turns]
    theirs, ours = (statistics.median(turn[i][0] for turn in turns) for i in range(2))
    accuracy = [turn[1] for turn in turns[-1]]
    return [
        f"{section}: {whos[1]} against {whos[0]}",
        f"{ours:.2f} s",
        f"{theirs:.2f} s",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})",
        f"{GOALS[section]:.2f}",
        " / ".join("-" if value is None else f"{100 * value:.2f} %" for value in reversed(accuracy)),
    ]


def on_accelerator(rounds):
    """The row of ImageNet's size."""
    sys.path.insert(0, str(ROOT))
    import keras

    from keras_issl import distribution
    from keras_issl.features import Features
    from keras_issl.probes import LinearProbe

    if not distribution.has_accelerator():
        raise SystemExit(f"--gpu needs an accelerator that Keras sees. Backend: {keras.backend.backend()}.")
    size, tested, dim, classes, strengths = GPU
    x, y = made_features(size + tested, dim, classes)
    train, test = Features(x[:size], y[:size]), Features(x[size:], y[size:])
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        probe = LinearProbe(strengths, engine="keras").fit(train)
        seconds.append(time.perf_counter() - began)
        print(f"gpu: {seconds[-1]:.1f} s, {probe.selection_}, {probe.validation_scores_}", file=sys.stderr, flush=True)
    spread = f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} .. {max(seconds):.1f})"
    name = f"gpu: LinearProbe, 1.28M x 2,048, {keras.backend.backend()}"
    return [name, spread, "-", "-", f"< {GOALS['gpu']:.0f} s", f"{100 * probe.score(test):.2f} %"]


def converged(section):
    """Test accuracy of ours and of scikit-learn's at the same strength, when its solver goes on to the optimum."""
    from sklearn.linear_model import LogisticRegression

    sys.path.insert(0, str(ROOT))
    from keras_issl.probes import LinearProbe

    size, tested, dim, classes, strengths = LINEAR[section]
    x, y = (isotropic_features if section == "isotropic" else made_features)(size + tested, dim, classes)
    probe = LinearProbe(strengths, standardize=False).fit(x[:size], y[:size])
    x, best = x.astype(np.float64), probe.best_strength_
    theirs = LogisticRegression(C=best, max_iter=10_000, tol=1e-7).fit(x[:size], y[:size])
    scores = [100 * fitted.score(x[size:], y[size:]) for fitted in (probe, theirs)]
    print(f"{section}, C = {best:g}, scikit-learn in float64 with tol=1e-7: {scores[0]:.2f} % / {scores[1]:.2f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--gpu", action="store_true", help="ImageNet's size on an accelerator, and nothing else")
    parser.add_argument("--converged", choices=LINEAR, help="accuracies alone, scikit-learn's at its optimum")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(*json.loads(options.worker))
    if options.converged:
        return converged(options.converged)
    sections = options.only.split(",")
    if options.rounds < 1 or not set(sections) <= set(SECTIONS):
        parser.error(f"--rounds should be at least 1, and --only among {', '.join(SECTIONS)}")
    if options.gpu:
        rows = [on_accelerator(options.rounds)]
    else:
        rows = [compare(section, options.rounds) for section in sections]
    header = ["case", "ours", "theirs", "theirs / ours: median (range)", "goal", "test accuracy: ours / theirs"]
    lines = [header, ["---"] * len(header), *rows]
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    table += f"\n\nMedians of {options.rounds} rounds; load average {load:.1f} on {cores} cores at the end."
    print(table)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
