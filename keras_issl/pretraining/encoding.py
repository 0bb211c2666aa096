"""From images to views, and from views to the features of the encoder and of its moving average."""

import contextlib

from keras import ops

from keras_issl import encoders, moving_average


@contextlib.contextmanager
def plain_errors():
    """Errors within come out of `fit` as they are: Keras would wrap them in a page on the arguments of `call`."""
    try:
        yield
    except ValueError as error:
        error._keras_call_info_injected = True  # what Keras marks an error with that has said enough
        raise


class Encoding:
    """Mixin of the `Pretrainer`: images in, features (V, B, D) out."""

    def views(self, images, training=True):
        """Views of a batch: a list of at least `objective.num_views` tensors (B, h, w, C).

        Args:
            images: (B, H, W, C) in [0, 255].
            training: `False` draws with a fixed seed.
        """
        if self.augmentation is None:
            return [images] * self.objective.num_views
        if getattr(self.augmentation, "_call_has_training_arg", False):
            views = self.augmentation(images, training=training)
        else:
            views = self.augmentation(images)
        with plain_errors():
            self._check_views(views)
        return list(views)

    def _check_views(self, views):
        needed, kind = self.objective.num_views, type(self.objective).__name__
        count = len(views) if isinstance(views, (list, tuple)) else type(views).__name__
        if not isinstance(count, int) or count < needed:
            raise ValueError(
                f"`augmentation` should return a list of at least {needed} views for {kind}. Received: {count}. "
                f"Pass num_views={needed} to it."
            )
        if count > needed and not self.objective.multi_crop:
            raise ValueError(
                f"`augmentation` should return {needed} views for {kind}, which does not define multi-crop. Received: "
                f"{count}. Use augmentations.SimCLR, or an objective that takes small crops: DISSL, DINO or SwAV."
            )
        sizes = [tuple(view.shape[1:3]) for view in views]
        if any(None in size for size in sizes):  # a stream that does not say
            return
        large = sizes[: self.objective.num_teacher_views]
        if len(set(large)) > 1 or any(height * width > large[0][0] * large[0][1] for height, width in sizes):
            raise ValueError(
                f"`augmentation` should return the {len(large)} large views that the teacher sees first, all of one "
                f"size, and then smaller ones. Received: views of {', '.join(f'{h}x{w}' for h, w in sizes)} pixels."
            )

    def features(self, views, training=True):
        """Features (V, B, D) of a list of V views; views of one size go through the encoder together."""
        with plain_errors():
            for view in views:
                encoders.check_images(self.encoder, view.shape)
        encoder = self._remat or self.encoder
        return self._encode(views, lambda x: encoder(x, training=training))

    def teacher_features(self, views, training=True):
        """The moving-average encoder's features (T, B, D) of the first T views, without gradient."""
        views = views[: self.objective.num_teacher_views]
        return self._encode(views, lambda x: moving_average.forward(self.teacher_encoder, x, training=training))

    @staticmethod
    def _encode(views, encoder):
        stacked, start = [], 0
        while start < len(views):
            shape, end = tuple(views[start].shape[1:]), start + 1
            while end < len(views) and tuple(views[end].shape[1:]) == shape:
                end += 1
            group = views[start] if end == start + 1 else ops.concatenate(views[start:end], axis=0)  # (k·B, h, w, C)
            x = encoder(group)  # (k·B, D)
            stacked.append(ops.reshape(x, (end - start, -1, x.shape[-1])))  # (k, B, D)
            start = end
        return stacked[0] if len(stacked) == 1 else ops.concatenate(stacked, axis=0)
