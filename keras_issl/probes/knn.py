"""`KNNProbe`: votes of the nearest training examples, weighted by their cosine similarity; several k in one pass."""

import numpy as np

from keras_issl.probes import engine as engines
from keras_issl.probes.base import (
    Probe,
    candidates,
    check_integer,
    class_numbers,
    fold_numbers,
    inputs,
    is_number,
    sentence,
)

K = (10, 20, 100, 200)
_QUERIES = 2_048  # examples whose neighbours are sought at once
_BANK = 4_096  # training examples they are compared with at once
_HELD_OUT = 4_096  # training examples, about, by which k is chosen
_FLOOR = float(np.finfo(np.float32).tiny)  # of a share of the votes, so that its logarithm is finite


class KNNProbe(Probe):
    """Weighted k-nearest neighbours by cosine similarity: a probe without training.

    The k most similar training examples each vote for their class with weight exp(similarity / temperature) (Wu et
    al. 2018, section 3.4; also the protocol of DINO, Caron et al. 2021). The neighbours are sought once for all k,
    blocks of queries against blocks of the training set, so that neither needs to fit in memory.

    k is chosen by leaving one out: each of about 4,096 training examples (all, of a smaller set; stratified) is
    classified by its neighbours among the other training examples. Then all of them vote at test time.

    A vector of zeros has similarity 0 to everything. Of equally similar examples (in single precision) the earlier one
    is nearer, but for `engine="keras"` on PyTorch, whose top-k promises no order; of classes with equal votes the first
    wins.

    Args:
        k: numbers of neighbours to choose from; of equally accurate ones the smallest is taken. Those above N - 1,
            which leaving one out cannot try, are dropped; if all are, N - 1 takes their place.
        temperature: of the weights. Infinity makes all votes equal; near 0 the nearest neighbour decides.
        engine: `"auto"`, `"numpy"` or `"keras"`: where the similarities are computed.
        seed: of the examples that choose k.

    Attributes:
        classes_: (C,) labels, sorted.
        selected_: `{"k": k}`.
        validation_scores_: dict from k to its leave-one-out accuracy; empty if no class has a second example.
        selection_: a sentence that names how k was chosen.
        n_features_in_: D.

    The fitted probe holds on to the training features themselves (a mapped file stays on the disk): do not write over
    them.

    Example:

    ```python
    probe = keras_issl.probes.KNNProbe(k=(5, 20)).fit(train)
    probe.score(test), probe.selected_
    probe.scores_by_k(test)  # {5: ..., 20: ...}, to be reported beside the chosen one, not to choose from
    ```
    """

    family = None

    def __init__(self, k=K, *, temperature=0.07, engine="auto", seed=0):
        self.k = k
        self.temperature = temperature
        self.engine = engine
        self.seed = seed

    def fit(self, x, y=None):
        """Keeps the examples, and chooses k among them.

        Args:
            x: (N, D) features, or `Features` with labels.
            y: (N,) labels, integers or strings; every example needs one.

        Returns:
            self.

        Raises:
            ValueError: no examples, fewer than two classes, labels that are missing or -1, NaN or infinity, a k that
                is not a positive integer, a temperature that is not positive.
        """
        x, y = inputs(x, y, family=self.family)
        ks, most = self._checked_ks(), len(x) - 1
        engines.choose(self.engine)
        classes, numbers = class_numbers(y)
        folds = fold_numbers(numbers, -(-len(x) // _HELD_OUT), np.random.default_rng(self.seed))
        self._bank, self._numbers, self._inverse_norms = x, numbers, _inverse_norms(x)
        self._ks = [k for k in ks if k <= most] or [most]
        self.classes_, self.n_features_in_ = classes, x.shape[1]
        self._select(np.flatnonzero(folds == 0), [k for k in ks if k not in self._ks])
        return self

    def scores_by_k(self, x, y=None):
        """Top-1 accuracy on (x, y), or on `Features` with labels, of each k: one search for all.

        Returns:
            A dict from k to the accuracy. The k that the training set chose is `selected_["k"]`: choosing another one
            by these numbers is choosing on the test set.
        """
        x, y = inputs(x, y)
        x, correct = self._fitting(x), np.zeros(len(self._ks))
        for start in range(0, len(x), _QUERIES):
            votes = self._votes(*self._neighbours(x[start : start + _QUERIES], max(self._ks)))
            correct += [(self.classes_[v.argmax(axis=1)] == y[start : start + _QUERIES]).sum() for v in votes]
        return dict(zip(self._ks, (correct / len(x)).tolist(), strict=True))

    def _select(self, held_out, dropped):
        """Sets the attributes that tell how k was chosen, by leaving out each of the examples `held_out`."""
        ks, size, correct = self._ks, len(self._numbers), np.zeros(len(self._ks))
        note = f"{', '.join(map(str, dropped))} dropped: there are {size - 1:,} others" if dropped else ""
        if len(ks) == 1 or not len(held_out):
            best, self.validation_scores_ = ks[0], {}
            why = "the only one left" if dropped else "the only one given"
            why = why if len(ks) == 1 else "the smallest: no class has a second example to leave out"
            self.selection_ = sentence("k", best, (), why, note)
        else:
            for start in range(0, len(held_out), _QUERIES):
                own = held_out[start : start + _QUERIES]
                similarity, index = self._neighbours(self._bank[own], ks[-1] + 1)
                # Without itself: k + 1 neighbours less the example, or less the last where others crowd it out.
                leave = index == own[:, None]  # (n, k + 1)
                leave[~leave.any(axis=1), -1] = True
                others = [array[~leave].reshape(len(own), -1) for array in (similarity, index)]  # (n, k) each
                correct += [(v.argmax(axis=1) == self._numbers[own]).sum() for v in self._votes(*others)]
            best = ks[int(correct.argmax())]
            self.validation_scores_ = dict(zip(ks, (correct / len(held_out)).tolist(), strict=True))
            some = f"{len(held_out):,}" if len(held_out) < size else "each"
            self.selection_ = sentence("k", best, ks, f"leaving out {some} of the {size:,} training examples", note)
        self.selected_ = {"k": best}

    def _checked_ks(self):
        if not (is_number(self.temperature) and self.temperature > 0):
            raise ValueError(f"`temperature` should be positive. Received: {self.temperature!r}.")
        check_integer("seed", self.seed, 0)
        whole = lambda k: isinstance(k, int | np.integer) and k >= 1  # noqa: E731
        return candidates("k", self.k, whole, "positive integers", int)

    def _scores(self, block):
        shares = []
        for start in range(0, len(block), _QUERIES):
            neighbours = self._neighbours(block[start : start + _QUERIES], self.selected_["k"])
            votes = self._votes(*neighbours, ks=[self.selected_["k"]])[0]
            shares.append(votes / votes.sum(axis=1, keepdims=True))
        return np.log(np.maximum(np.concatenate(shares), _FLOOR))

    def _neighbours(self, queries, k):
        """Similarities and numbers (n, k) of the training examples nearest to (n, D) queries, the nearest first."""
        engine = engines.choose(self.engine)
        search = _search_numpy if engine.name == "numpy" else _search_keras
        queries = queries * _inverse_norms(queries)[:, None]
        return search(engine, queries.astype(np.float32, copy=False), self._bank, self._inverse_norms, k)

    def _votes(self, similarity, index, ks=None):
        """Votes (n, C) for each k, from (n, k) neighbours, the nearest first."""
        cells = self._numbers[index] + len(self.classes_) * np.arange(len(index))[:, None]  # (n, k)
        # A common factor, the nearest neighbour's own weight, leaves the shares as they are and cannot overflow.
        weights = np.exp((similarity - similarity[:, :1]).astype(np.float64) / self.temperature)
        total, before, votes = np.zeros((len(index), len(self.classes_))), 0, []
        for k in self._ks if ks is None else ks:
            part = np.s_[:, before:k]
            total = total + np.bincount(cells[part].ravel(), weights[part].ravel(), total.size).reshape(total.shape)
            votes, before = [*votes, total], k
        return votes


def _inverse_norms(x):
    """1 / the norm of each row of (N, D), in its dtype; 0 for a row of zeros."""
    inverse = np.zeros(len(x), x.dtype)
    for start in range(0, len(x), _BANK):
        block = np.asarray(x[start : start + _BANK], np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        inverse[start : start + _BANK] = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return inverse


def _search_numpy(engine, queries, bank, inverse_norms, k):
    """The k nearest of the bank. What is less similar than the k-th so far is passed over without sorting."""
    best = np.empty((len(queries), 0), np.float32)
    index = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(bank), _BANK):
        block = bank[start : start + _BANK] * inverse_norms[start : start + _BANK, None]
        similarity = queries @ block.astype(np.float32, copy=False).T  # (n, block)
        if best.shape[1] < k:
            numbers = np.broadcast_to(np.arange(start, start + len(block)), similarity.shape)
        else:
            rows, columns = np.nonzero(similarity > best.min(axis=1)[:, None])
            counts = np.bincount(rows, minlength=len(queries))
            place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
            numbers = np.zeros((len(queries), counts.max(initial=0)), np.int64)
            packed = np.full(numbers.shape, -np.inf, np.float32)
            numbers[rows, place], packed[rows, place] = start + columns, similarity[rows, columns]
            similarity = packed
        best, index = _top(np.hstack([best, similarity]), np.hstack([index, numbers]), k)
    order = np.argsort(-best, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(index, order, axis=1)


def _top(similarity, index, k):
    """The k most similar of each row, columns in their old order; of equals the earlier columns."""
    if similarity.shape[1] <= k:
        return similarity, index
    chosen = np.argpartition(similarity, -k, axis=1)[:, -k:]  # (n, k)
    worst = np.take_along_axis(similarity, chosen, axis=1).min(axis=1, keepdims=True)
    tied = (similarity >= worst).sum(axis=1) > k
    chosen[tied] = np.argsort(-similarity[tied], axis=1, kind="stable")[:, :k]
    chosen.sort(axis=1)
    return np.take_along_axis(similarity, chosen, axis=1), np.take_along_axis(index, chosen, axis=1)


def _search_keras(engine, queries, bank, inverse_norms, k):
    """The k nearest of the bank, on the device of the Keras backend."""
    ops, queries = engine.ops, engine.put(queries)
    best = index = None
    for start in range(0, len(bank), _BANK):
        block = engine.put(bank[start : start + _BANK] * inverse_norms[start : start + _BANK, None])
        similarity = ops.matmul(queries, ops.transpose(block))  # (n, block)
        values, numbers = ops.top_k(similarity, min(k, len(block)))
        numbers = ops.cast(numbers, "int32") + start
        if best is not None:
            values, numbers = (ops.concatenate(pair, axis=1) for pair in ((best, values), (index, numbers)))
        best, order = ops.top_k(values, min(k, values.shape[1]))
        index = ops.take_along_axis(numbers, order, axis=1)
    return engine.get(best), engine.get(index).astype(np.int64)
