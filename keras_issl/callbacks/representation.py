"""What the representation of a few fixed images is like while the encoder trains."""

import numpy as np
from keras import ops

from keras_issl import diagnostics

IMAGES = 256  # no rank above 255 can be seen of them; an encoder of 8,192 features is judged by its trend
PIXELS = IMAGES * 64 * 64  # of larger images fewer are taken: half of them at 90 pixels, and never below 64
LEAST = 64
CHUNK = 64


class FixedViews:
    """Two augmented views of a few fixed images, drawn once, and the measures of their features.

    An augmentation that takes no `training` cannot be asked for views without a draw that the run would miss: then the
    images stand for themselves, and `within_between` is not known.

    Args:
        model: A `Pretrainer`.
        images: Indexable uint8 or float images (N, H, W, C), at least four of them.

    Example:

    >>> measure = keras_issl.callbacks.FixedViews(model, images)
    >>> sorted(measure())
    ['effective_rank', 'within_between']
    """

    names = ("effective_rank", "within_between")

    def __init__(self, model, images):
        side = int(np.prod(images.shape[1:3]))
        count = min(len(images), max(LEAST, min(IMAGES, PIXELS // side)))
        chosen = np.linspace(0, len(images) - 1, count).astype(int)
        views = [model._to_encoder_channels(images[chosen])]
        if model.augmentation is None or getattr(model.augmentation, "_call_has_training_arg", False):
            # A layer of one's own may draw all the same: its state goes back.
            state = [(v, ops.copy(ops.convert_to_tensor(v))) for v in getattr(model.augmentation, "variables", ())]
            views = model.views(views[0], training=False)[:2]
            for variable, value in state:
                variable.assign(value)
        self.encoder, self.views = model.encoder, [ops.convert_to_numpy(view) for view in views]

    def __call__(self):
        """`effective_rank` (RankMe) of the first view's features, and `within_between`, by name.

        `within_between` is the mean squared distance within images over that between images: 0 is invariant, 1 chance.
        Features that are not finite have neither: NaN.
        """
        features = np.stack([self._features(view) for view in self.views]).astype(np.float64)  # (2, N, D)
        if not np.isfinite(features).all():
            return dict.fromkeys(self.names, float("nan"))
        ratio = diagnostics.invariance(features).ratio if len(features) > 1 else float("nan")
        return {"effective_rank": float(diagnostics.effective_rank(features[0])), "within_between": float(ratio)}

    def _features(self, view):
        parts = []
        for start in range(0, len(view), CHUNK):
            part = view[start : start + CHUNK]
            full = np.concatenate([part, np.zeros((CHUNK - len(part), *part.shape[1:]), part.dtype)])  # one shape
            parts.append(np.asarray(self.encoder.predict_on_batch(full), np.float32)[: len(part)])
        return np.concatenate(parts)
