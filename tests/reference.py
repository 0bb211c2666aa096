"""Float64 NumPy references, written as loops from the equations of the papers. Slow and plain on purpose."""

import numpy as np


def _log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def dissl(teacher_logits, student_logits, tau_t=0.5, tau_s=1.0, lam=2.3, beta=0.8):
    """Loss and its parts, Dubois et al. 2022, §5.2."""
    t, s = teacher_logits.astype("float64"), student_logits.astype("float64")
    (T, B, _), V = t.shape, s.shape[0]
    log_q, log_p = _log_softmax(t / tau_t), _log_softmax(s / tau_s)
    q = np.exp(log_q)
    distillation, invariance, same, determinism = [], [], [], []
    for b in range(B):
        for i in range(T):
            distillation += [-(q[i, b] * log_p[j, b]).sum() for j in range(V) if j != i]
            invariance += [-(q[i, b] * log_q[k, b]).sum() for k in range(T) if k != i]
            same.append(-(q[i, b] * log_p[i, b]).sum())
            determinism.append(-(q[i, b] * log_q[i, b]).sum())
    entropies = []
    for i in range(T):
        mean = q[i].mean(0)
        entropies.append(-(mean * np.log(mean)).sum())
    d, inv, h, same, det = (np.mean(x) for x in (distillation, invariance, entropies, same, determinism))
    logs = {
        "distillation": d,
        "invariance": inv,
        "marginal_entropy": h,
        "marginal_entropy_bound": np.log(min(B, t.shape[-1])),
        "conditional_entropy": det,
        "kl_invariance": inv - det,
        "kl_distillation": same - det,
        "effective_classes": np.exp(h),
    }
    return d - lam * h + beta * inv, logs


def _unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def cissl(student, teacher, tau=0.07):
    """Mean over the 2B views of the cross-entropy with target ½ own view, ½ positive; nothing masked."""
    B = student.shape[1]
    s, t = (_unit(x.astype("float64")).reshape(2 * B, -1) for x in (student, teacher))
    rows = []
    for i in range(2 * B):
        log_p = _log_softmax(np.array([s[i] @ t[k] / tau for k in range(2 * B)]))
        rows.append(-0.5 * log_p[i] - 0.5 * log_p[(i + B) % (2 * B)])
    return np.mean(rows)


def simclr(projections, tau=0.07):
    """NT-Xent, Chen et al. 2020, equation 1."""
    B = projections.shape[1]
    z = _unit(projections.astype("float64")).reshape(2 * B, -1)
    rows = []
    for i in range(2 * B):
        others = [k for k in range(2 * B) if k != i]
        log_p = _log_softmax(np.array([z[i] @ z[k] / tau for k in others]))
        rows.append(-log_p[others.index((i + B) % (2 * B))])
    return np.mean(rows)


def gradient(function, *arrays, step=1e-6):
    """Central differences of a scalar function of float64 arrays, one gradient an array."""
    gradients = []
    for n, array in enumerate(arrays):
        g = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            values = []
            for sign in (1, -1):
                moved = [a.astype("float64").copy() for a in arrays]
                moved[n][index] += sign * step
                values.append(function(*moved))
            g[index] = (values[0] - values[1]) / (2 * step)
        gradients.append(g)
    return gradients
