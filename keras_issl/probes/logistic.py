"""The optimiser of the linear probe: L2-regularised multinomial logistic regression, all strengths at once."""

import numpy as np

TOLERANCE = 1e-10  # estimated distance of an objective from its optimum, relative to it
_MEMORY = 6  # pairs of steps and changes of the gradient that are kept
_SLACK = {"float32": 1e-6, "float64": 1e-12}  # relative noise of an objective
_SHORTEST = 1e-6  # of a step, relative to the proposed one: below it the arithmetic is at its end
_PATIENCE = 10  # passes without a fall of the objective by a tenth of its noise: the same


def solve(rows, spectrum, strengths, *, start=None, tolerance=TOLERANCE, max_passes=2_000):
    """Minimises mean_i w_i cross_entropy(softmax(x_i W + b), y_i) + ||W||^2 / (2 C N) for several C at once.

    Preconditioned L-BFGS (Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4), one for each C, in step:
    a pass over the rows evaluates a trial point of every C, with one matrix product for all of them. Those that have
    arrived leave.

    The initial inverse Hessian is diagonal and renewed at every step: 1 / (spectrum_d a_k + 1 / (C N)), where a_k is
    the mean of w_i p_ik (1 - p_ik), times K / (K - 1), by which classes that compete evenly curve more than one alone.
    It is the inverse of the true Hessian's diagonal if the rows' columns are uncorrelated and p independent of them.

    A trial is accepted by Armijo's condition, or by its slope (Hager and Zhang, SIAM J. Optim. 16, 2005, eq. 4), which
    stays exact where the objective no longer changes in the digits of the arithmetic.

    Args:
        rows: `Rows` with columns of mean zero.
        spectrum: (R,) mean squares of the rows' columns, or an approximation.
        strengths: (S,) values of C.
        start: (S, K, R + 1) initial weights, a NumPy array; None for zero.
        tolerance: of the objective's estimated distance from its optimum, relative to it.
        max_passes: stop there in any case.

    Returns:
        (S, K, R + 1) weights, a NumPy array, the intercept last.
    """
    engine, ops = rows.engine, rows.engine.ops
    shape = (rows.classes, rows.dim + 1)
    strengths = np.asarray(strengths, np.float64)
    found = np.zeros((len(strengths), *shape), rows.dtype) if start is None else np.array(start, rows.dtype)
    active = np.arange(len(strengths))
    decay = 1 / (strengths * rows.size)  # (S,)
    slack = _SLACK[rows.dtype]
    flat = (-1, shape[0] * shape[1])

    spectrum = engine.put(np.append(spectrum, 1).reshape(1, 1, -1), rows.dtype)  # (1, 1, R + 1), 1 for the intercept
    penalised = np.append(np.ones(rows.dim), 0)
    pull = engine.put(decay[:, None, None] * penalised, rows.dtype)  # (S, 1, R + 1), 0 for the intercept

    def evaluate(points):
        """Objective (S,), on the host; gradient and initial inverse Hessian (S, P), at points (S, P)."""
        loss, gradient, spread = _pass(rows, ops.reshape(points, (-1, *shape)))
        penalty = pull * ops.reshape(points, (-1, *shape))
        inverse = 1 / (spectrum * spread[:, :, None] + pull)
        gradient = ops.reshape(gradient + penalty, flat)
        loss = loss + dot(ops.reshape(penalty, flat), points) / 2
        return loss, gradient, ops.reshape(inverse, flat)

    def dot(a, b):
        return engine.get(ops.sum(a * b, axis=1)).astype(np.float64)  # (S,)

    def column(values, rank=2):
        """Host values (S,) beside arrays (S, ...)."""
        return engine.put(np.reshape(values, (-1,) + (1,) * (rank - 1)), rows.dtype)

    points = ops.reshape(engine.put(found, rows.dtype), flat)  # (S, P)
    loss, gradient, inverse = evaluate(points)
    direction = -gradient * inverse
    slope = dot(gradient, direction)
    length = np.ones(len(active))
    pairs = []  # (step (S, P), change of the gradient (S, P), 1 / their product (S, 1), 0 where there is none)
    gamma = np.ones(len(active))
    lowest, waited = loss, np.zeros(len(active), int)
    for _ in range(max_passes):
        done = (-slope / 2 <= tolerance * loss) | (length < _SHORTEST) | (waited >= _PATIENCE)
        # A new shape costs a compiler more than a strength too many does: there they leave by halves.
        if done.any() and (engine.name == "numpy" or 2 * done.sum() >= len(done)):
            found[active[done]] = engine.get(points)[done].reshape(-1, *shape)
            if done.all():
                break
            stay = np.flatnonzero(~done)
            active, loss, slope, length, gamma, lowest, waited = (
                v[stay] for v in (active, loss, slope, length, gamma, lowest, waited)
            )
            points, gradient, inverse, direction = (
                ops.take(v, stay, axis=0) for v in (points, gradient, inverse, direction)
            )
            pull = ops.take(pull, stay, axis=0)
            pairs = [tuple(ops.take(part, stay, axis=0) for part in pair) for pair in pairs]
        trial = points + column(length) * direction
        new_loss, new_gradient, new_inverse = evaluate(trial)
        new_slope = dot(new_gradient, direction)
        accepted = new_loss <= loss + 1e-4 * length * slope
        accepted |= (np.abs(new_slope) <= 0.8 * np.abs(slope)) & (new_loss <= loss + slack * np.abs(loss))
        if accepted.any():
            bend = length * (new_slope - slope)  # step times change of the gradient
            useful = accepted & (bend > 0)
            reciprocal = np.where(useful, 1 / np.where(useful, bend, 1), 0)
            change = new_gradient - gradient
            pairs = [*pairs, (trial - points, change, column(reciprocal))][-_MEMORY:]
            curvature = dot(change * new_inverse, change)
            gamma = np.where(useful & (curvature > 0), bend / np.where(curvature > 0, curvature, 1), gamma)
            if accepted.all():
                points, loss, gradient, inverse = trial, new_loss, new_gradient, new_inverse
                direction = -_two_loops(ops, gradient, inverse * column(gamma), pairs)
            else:
                mask = column(accepted) > 0
                points, gradient = ops.where(mask, trial, points), ops.where(mask, new_gradient, gradient)
                inverse, loss = ops.where(mask, new_inverse, inverse), np.where(accepted, new_loss, loss)
                ahead = -_two_loops(ops, gradient, inverse * column(gamma), pairs)
                direction = ops.where(mask, ahead, direction)
            slope = dot(gradient, direction)
        # A rejected step is shortened to where the slope would vanish if it were linear.
        shorter = length * np.clip(slope / np.minimum(slope - new_slope, -1e-300), 0.1, 0.5)
        length = np.where(accepted, 1.0, shorter)
        fallen = loss < lowest - 0.1 * slack * np.abs(lowest)
        lowest, waited = np.where(fallen, loss, lowest), np.where(fallen, 0, waited + 1)
    else:
        found[active] = engine.get(points).reshape(-1, *shape)
    found[:, :, -1] -= found[:, :, -1].mean(axis=1, keepdims=True)  # of all equivalent intercepts that which sums to 0
    return found


def _maps(rows, weights):
    """Weights (S, K, R + 1) as one matrix (S K, D + 1) for the rows, whose basis is left to them."""
    ops, (fits, classes, height) = rows.engine.ops, weights.shape
    maps = ops.reshape(weights, (fits * classes, height))
    if rows.basis is None:
        return maps
    return ops.concatenate([ops.matmul(maps[:, :-1], ops.transpose(rows.basis)), maps[:, -1:]], axis=1)


def _pass(rows, weights):
    """Mean loss (S,) on the host, its gradient (S, K, R + 1), and the spreads a (S, K), of weights (S, K, R + 1)."""
    engine, ops = rows.engine, rows.engine.ops
    fits, classes, height = weights.shape
    maps = _maps(rows, weights)
    labels = engine.put(np.arange(classes).reshape(-1, 1), "int32")
    losses, gradient, spread = [], 0, 0
    for x, numbers, counts in rows:
        logits = ops.reshape(ops.matmul(maps, ops.transpose(x)), (fits, classes, -1))  # (S, K, n)
        own = numbers == labels  # (1, K, n)
        logits = logits - ops.sum(ops.where(own, logits, 0), axis=1, keepdims=True)
        others = ops.where(own, -np.inf, logits)
        highest = ops.max(others, axis=1, keepdims=True)  # (S, 1, n)
        others = ops.exp(others - highest)
        total = ops.sum(others, axis=1, keepdims=True)
        odds = highest + ops.log(total)  # of any other class against its own, as a logarithm
        loss = ops.logaddexp(odds, 0 * odds)
        losses.append(ops.sum(counts * loss, axis=(1, 2)))
        wrong = ops.exp(odds - loss)  # 1 - p of its own class: exact where that is tiny
        error = ops.where(own, -counts * wrong, others * (counts * wrong / total))
        spread = spread + ops.sum(ops.abs(error) - ops.square(error) / counts, axis=2)  # (S, K)
        gradient = gradient + ops.matmul(ops.reshape(error, (fits * classes, -1)), x)  # (S K, D + 1)
    if rows.basis is not None:
        gradient = ops.concatenate([ops.matmul(gradient[:, :-1], rows.basis), gradient[:, -1:]], axis=1)  # (S K, R + 1)
    loss = engine.get(ops.stack(losses)).astype(np.float64).sum(axis=0) / rows.size
    spread = ops.maximum(spread * (classes / (classes - 1) / rows.size), 1e-12)
    return loss, ops.reshape(gradient, (fits, classes, height)) / rows.size, spread


def _two_loops(ops, gradient, inverse, pairs):
    """L-BFGS's inverse Hessians times the gradients, all (S, P)."""
    direction, saved = gradient, []
    for step, change, reciprocal in reversed(pairs):
        saved.append(reciprocal * _dots(ops, step, direction))  # (S, 1)
        direction = direction - saved[-1] * change
    direction = direction * inverse
    for step, change, reciprocal in pairs:
        weight = saved.pop() - reciprocal * _dots(ops, change, direction)
        direction = direction + weight * step
    return direction


def _dots(ops, a, b):
    """Products (S, 1) of the rows of (S, P)."""
    if ops is np:  # in one call: most of a small problem's time is calls
        return np.einsum("sp,sp->s", a, b)[:, None]
    return ops.sum(a * b, axis=1, keepdims=True)


def held_out_scores(rows, weights):
    """Correct predictions and log-likelihood (2, S) of held-out rows under weights (S, K, R + 1)."""
    engine, ops = rows.engine, rows.engine.ops
    fits, classes, _ = weights.shape
    maps = _maps(rows, engine.put(weights, rows.dtype))
    scores = np.zeros((2, fits))
    for x, numbers, _ in rows:
        logits = ops.reshape(ops.matmul(maps, ops.transpose(x)), (fits, classes, -1))  # (S, K, n)
        correct = ops.argmax(logits, axis=1) == numbers[0]  # (S, n)
        logits = logits - ops.max(logits, axis=1, keepdims=True)
        likelihood = ops.take_along_axis(logits, numbers, axis=1)[:, 0] - ops.log(ops.sum(ops.exp(logits), axis=1))
        scores[0] += engine.get(ops.sum(ops.where(correct, 1, 0), axis=1))
        scores[1] += engine.get(ops.sum(likelihood, axis=1))
    return scores
