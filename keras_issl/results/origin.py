"""Where features come from, as results and pages may say it: without paths of a machine."""

from keras_issl.report.words import public_name
from keras_issl.results.schema import json_value

KEYS = ("weights_sha256", "encoder", "probe", "image_shape", "preprocessing", "dtype_policy", "backend", "keras")


def representation(provenance, *, name=None, feature_dim=None):
    """`Result.representation` of features, from their provenance. A folder's name stands for it, not its path.

    Args:
        provenance: dict, `Features.provenance`.
        name: what tables call it; by default its preset or encoder.
        feature_dim: the number of dimensions.

    Returns:
        A dict of `name`, `feature_dim`, and what is known of `preset`, `weights_sha256`, `encoder`, `probe` (the family
        that it was trained for), `image_shape`, `preprocessing`, `dtype_policy`, `backend` and `keras`.

    Example:

    >>> keras_issl.results.representation({"preset": "/home/me/runs/cells/preset", "probe": "mlp"}, feature_dim=512)
    {'name': 'cells', 'feature_dim': 512, 'probe': 'mlp', 'preset': 'cells'}
    """
    found = {key: json_value(provenance[key]) for key in KEYS if provenance.get(key) is not None}
    if (preset := provenance.get("preset")) is not None:
        found["preset"] = public_name(preset)
    called = str(name or found.get("preset") or found.get("encoder") or "features")
    return {"name": called, "feature_dim": feature_dim, **found}
