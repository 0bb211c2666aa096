"""Many small networks trained side by side: the MLP probes of `idealness`."""

import math

import numpy as np

HIDDEN = 64  # units of each task's network
_STEPS, _BATCH, _RATE, _CHECK = 1000, 256, 0.01, 20


def network_logits(x, signs, fresh, rng):
    """Logits (T, M) at fresh points (M, D) of T networks, each trained on its own task.

    The networks share nothing but their batches: the hidden units of all stand side by side in one matrix product.
    Training ends after 1,000 steps, or once every point of every task has a margin of 1.

    Args:
        x: (N, D) points.
        signs: (T, N).
        fresh: (M, D).
        rng: of the initial weights and the batches.
    """
    tasks, (count, dim) = len(signs), x.shape
    mean = x.mean(axis=0)
    scale = np.sqrt(np.mean((x - mean) ** 2)) or 1.0
    x, fresh, signs = (x - mean) / scale, (fresh - mean) / scale, signs.astype(np.float32)
    weights = [
        rng.normal(size=(dim, tasks * HIDDEN)) * math.sqrt(2 / dim),  # (D, T h)
        rng.normal(size=tasks * HIDDEN),  # biases of the size of the data: the kinks lie among the points
        rng.normal(size=(tasks, HIDDEN)) / math.sqrt(HIDDEN),
        np.zeros(tasks),
    ]
    weights = [w.astype(np.float32) for w in weights]
    moments = [[np.zeros_like(w), np.zeros_like(w)] for w in weights]

    def forward(points):
        hidden = np.maximum(0, points @ weights[0] + weights[1]).reshape(len(points), tasks, HIDDEN)
        return hidden, np.einsum("nth,th->nt", hidden, weights[2]) + weights[3]

    for step in range(1, _STEPS + 1):
        rows = slice(None) if count <= _BATCH else rng.permutation(count)[:_BATCH]
        batch, target = x[rows], signs[:, rows].T  # (B, D), (B, T)
        hidden, logits = forward(batch)
        if step % _CHECK == 0 and (logits * target).min() >= 1 and (forward(x)[1] * signs.T).min() >= 1:
            break
        slope = -target / (1 + np.exp(np.clip(target * logits, -60, 60))) / len(batch)  # (B, T): of the logistic loss
        back = ((hidden > 0) * (slope[:, :, None] * weights[2])).reshape(len(batch), -1)  # (B, T h)
        gradients = [batch.T @ back, back.sum(axis=0), np.einsum("nt,nth->th", slope, hidden), slope.sum(axis=0)]
        for w, g, (first, second) in zip(weights, gradients, moments, strict=True):
            first += 0.1 * (g - first)
            second += 0.001 * (g * g - second)
            rate = _RATE * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            w -= rate * first / (np.sqrt(second) + 1e-8)
    return forward(fresh)[1].T
