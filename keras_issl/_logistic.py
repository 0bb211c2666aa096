"""The optimiser of the linear probe: L2-regularised multinomial logistic regression on arrays, in NumPy."""

import collections

import numpy as np

TOLERANCE = 1e-9  # relative distance of the objective from its optimum


def solve(x, y, strength, *, start=None, spectrum=None, tolerance=TOLERANCE, max_iterations=2_000, memory=10):
    """L2-regularised multinomial logistic regression of centred features, by preconditioned L-BFGS.

    Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4. Its initial inverse Hessian is diagonal, and is
    renewed in every iteration: 1 / (spectrum_d a_k + 1 / (C N)), with a_k the mean of p_k (1 - p_k). It is the inverse
    of the true Hessian's diagonal if x^T x is diagonal (`probes._rotate`) and p independent of x. An iteration takes
    two products with x; the line search works on the logits.

    Args:
        x: (N, D) float64, centred.
        y: (N,) class numbers.
        strength: C.
        start: (D + 1, K) initial weights, the intercept last.
        spectrum: (D,) mean squares of x's columns.
        tolerance: stop when the estimated distance to the optimum, relative to the objective, is below it.
        max_iterations: stop there in any case.
        memory: pairs of steps and gradient changes that are kept.

    Returns:
        (D + 1, K) weights, the intercept last.
    """
    size, classes = len(x), int(y.max()) + 1 if start is None else start.shape[1]
    weights = np.zeros((x.shape[1] + 1, classes)) if start is None else start
    spectrum = np.einsum("nd,nd->d", x, x) / size if spectrum is None else spectrum
    decay = 1 / (strength * size)
    rows = np.arange(size)

    def gradient(probabilities, weights):
        error = probabilities.copy()
        error[rows, y] -= 1  # (N, K)
        return np.vstack([x.T @ error / size + decay * weights[:-1], error.mean(axis=0)])  # (D + 1, K)

    logits = x @ weights[:-1] + weights[-1]  # (N, K)
    probabilities, loss = softmax(logits, y)
    loss += decay / 2 * np.vdot(weights[:-1], weights[:-1])
    slope = gradient(probabilities, weights)
    pairs = collections.deque(maxlen=memory)  # (step, change of the gradient, 1 / their product)
    for _ in range(max_iterations):
        spread = np.maximum(np.einsum("nk,nk->k", probabilities, 1 - probabilities) / size, 1e-12)  # (K,)
        inverse = 1 / np.vstack([np.outer(spectrum, spread) + decay, spread])  # (D + 1, K)
        if np.vdot(slope, slope * inverse) / 2 <= tolerance * loss:
            break
        direction = -_two_loops(slope, inverse, pairs)
        descent = np.vdot(slope, direction)
        change = x @ direction[:-1] + direction[-1]
        length = 1.0
        while True:  # backtracking to Armijo's condition; convexity makes the curvature of every step positive
            moved = weights + length * direction
            probabilities, lower = softmax(logits + length * change, y)
            lower += decay / 2 * np.vdot(moved[:-1], moved[:-1])
            if lower <= loss + 1e-4 * length * descent or length < 1e-8:
                break
            length /= 2
        if lower >= loss:  # the arithmetic's end
            break
        new_slope = gradient(probabilities, moved)
        step, bend = moved - weights, new_slope - slope
        if np.vdot(step, bend) > 0:
            pairs.append((step, bend, 1 / np.vdot(step, bend)))
        weights, loss, slope = moved, lower, new_slope
        logits = logits + length * change
    return weights


def _two_loops(slope, inverse, pairs):
    """L-BFGS's inverse Hessian times the gradient, all (D + 1, K)."""
    direction, saved = slope.copy(), []
    for step, bend, scale in reversed(pairs):
        saved.append(scale * np.vdot(step, direction))
        direction -= saved[-1] * bend
    direction *= inverse
    if pairs:
        step, bend, scale = pairs[-1]
        direction /= scale * np.vdot(bend * inverse, bend)
    for step, bend, scale in pairs:
        direction += (saved.pop() - scale * np.vdot(bend, direction)) * step
    return direction


def softmax(logits, y=None):
    """Probabilities (N, K) and, with class numbers y, the mean cross-entropy."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    totals = powers.sum(axis=1, keepdims=True)
    loss = None if y is None else float(np.mean(np.log(totals[:, 0]) - shifted[np.arange(len(y)), y]))
    return powers / totals, loss
