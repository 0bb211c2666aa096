"""The training model: images -> views -> features -> objective, under plain `compile` and `fit`."""

import contextlib

import keras
from keras import ops

from keras_issl import datasets, distribution, encoders, moving_average, provenance
from keras_issl.callbacks import NaNGuard, NonFiniteLoss, StopTogether
from keras_issl.pretraining.data import DEFAULT_BATCH_SIZE, Feeding, is_array
from keras_issl.pretraining.encoding import Encoding
from keras_issl.pretraining.memory import OutOfMemory, memory_advice
from keras_issl.pretraining.online_probe import ONLINE, OnlineScoring, as_probe, prepare
from keras_issl.pretraining.post_mortem import explain
from keras_issl.pretraining.resuming import (
    RunCallbacks,
    check_seekable,
    checkpoint_of,
    facts_of,
    not_finalized,
    note_optimizer,
)
from keras_issl.pretraining.saving import Saving


def _check_width(objective, width):
    """Refuses an objective whose heads were built for other features."""
    known = objective.get_build_config() or {}
    built = known.get("input_shape") or known.get("shapes_dict", {}).get("student_features_shape")
    if built is not None and built[-1] != width:
        raise ValueError(
            f"`objective` should be new, or built for the {width} features of this encoder. Received: "
            f"{type(objective).__name__}, whose heads were built for {built[-1]}."
        )


@keras.saving.register_keras_serializable(package="keras_issl")
class Pretrainer(Encoding, Feeding, OnlineScoring, Saving, distribution.DataParallel, keras.Model):
    """Trains an encoder without labels: an augmentation makes views, an objective scores their features.

    Args:
        encoder: A model from images (N, H, W, C) in [0, 255] to features (N, D): `encoders.ResNet`,
            or any other through `encoders.Adapter`.
        objective: What to train for, e.g. `objectives.DISSL()`.
        augmentation: A layer or callable from images (B, H, W, C) in [0, 255] to a list of views
            (B, h, w, C), e.g. `augmentations.SimCLR(32, preset="cifar10")`. `None` passes copies.
        online_probe: `None`; or a `pretraining.OnlineProbe`, or the number of classes of one: a linear probe that
            learns from the labels beside the encoder and leaves it bit for bit as it would be.
        seed: Decides the order in which `fit` takes the images of an array.
        remat: Whether the backward pass computes the encoder's activations again, block by block, instead of keeping
            them: the same weights for less memory and about one more forward pass; see `encoders.Remat`. The encoder
            itself, and what is saved of it, stays as it is.

    `fit` takes an array of images, (images, labels), an `ImageDataset`, a `tf.data.Dataset`, a
    `PyDataset` or a grain dataset; labels are for the online probe alone, and -1 is no label. Where
    the loss couples the images of a batch the incomplete last batch is dropped, with one warning.
    `evaluate` is the loss on views drawn with a fixed seed, in inference mode. `predict` gives
    features, (N, D) float32. The encoder stays a model of its own: `model.encoder.predict`, `model.encoder.save`.

    For an objective with `teacher_momentum`, `model.teacher_encoder` is a moving average of the encoder, weights and
    batch statistics: it starts from the encoder's values, moves once a step before the forward pass, and is saved with
    the model. (The average of the last step is thus taken when the next one begins.) Schedules of the objective run
    along the epochs that `fit` counts: to go on with a run, pass `initial_epoch`.

    Besides the loss, logs hold what the objective declares in `log_names`.

    Attributes:
        batches: While `fit` runs on an array, an `ImageDataset` or `datasets.Batches`: the `Batches` it takes.
        images_per_step: While `fit` runs: images a batch, where that is known.

    Raises:
        ValueError: The encoder's features are not (N, D); the augmentation gives fewer views than
            the objective needs, or more than it can use; the encoder cannot be copied for a moving average, or cut into
            blocks for `remat`; images of the wrong rank, empty, or with NaN or infinite values; a run that is too
            short for the objective's schedules, or of unknown length.

    Source: Dubois et al. 2022, §5.

    Example:

    >>> encoder = keras_issl.encoders.ResNet(18, image_size=32, width=8)
    >>> model = keras_issl.Pretrainer(encoder, keras_issl.objectives.DISSL(num_classes=64))
    >>> model.compile(optimizer="adam")
    >>> history = model.fit(np.random.randint(0, 256, (32, 32, 32, 3), "uint8"), batch_size=16, verbose=0)
    """

    def __init__(self, encoder, objective, augmentation=None, *, online_probe=None, seed=0, remat=False, **kwargs):
        # Views are made from uint8 or float32 images: nothing may round the input to bfloat16 first.
        super().__init__(autocast=False, **kwargs)
        self.encoder, self.objective, self.augmentation, self.seed = encoder, objective, augmentation, seed
        self._remat = encoders.Remat(encoder) if remat else None
        # Everything is built here: values assigned while `fit` builds a model are lost in its scope.
        width = encoders.feature_dim(encoder)
        if objective.built:
            _check_width(objective, width)
        else:
            objective.build((objective.num_views, None, width))
            objective.built = True
        self.teacher_encoder = None
        if objective.teacher_momentum is not None:
            with encoders.from_zeros():  # its values are the encoder's
                self.teacher_encoder = moving_average.follower(encoder)
        provenance.note(encoder, probe=provenance.probe_family(objective))
        self.steps = self.add_weight(shape=(), dtype="int32", trainable=False, initializer="zeros", name="steps")
        self.online_probe = as_probe(online_probe)
        prepare(self.online_probe, width)
        self.log_trackers = {name: keras.metrics.Mean(name=name) for name in objective.log_names}
        self._said_drop, self._scoring = False, False
        self.batches, self.images_per_step = None, None
        self.built = True

    @property
    def teacher_pairs(self):
        """[(layer, its moving average)]: the encoder and the objective's heads; empty without a teacher."""
        encoder = [] if self.teacher_encoder is None else [(self.encoder, self.teacher_encoder)]
        return [*encoder, *self.objective.teacher_pairs]

    # ------------------------------------------------------------------ one step
    def outputs(self, images, training=True):
        """The objective's outputs for the views of a batch of images; and `online_features`, for an online probe."""
        views = self.views(images, training=training)
        teacher_features = None
        if self.teacher_encoder is not None:
            if training:
                self._move_teacher()
            teacher_features = self.teacher_features(views, training=training)  # (T, B, D)
        features = self.features(views, training=training)  # (V, B, D)
        outputs = self.objective(features, teacher_features, training=training)
        if self.online_probe is None:
            return outputs
        return {**outputs, ONLINE: self._online_features(images, views, features, training)}

    def _move_teacher(self):
        """Takes the step before into the moving average, now that the optimizer has finished it; the first has none."""
        # At the momentum of the step that produced the weights. Without one, m = 1 keeps the teacher bit for bit.
        before = ops.maximum(self.steps - 1, 0)
        momentum = ops.where(self.steps > 0, ops.cast(self.objective.momentum(before), "float32"), 1.0)
        for layer, copy in self.teacher_pairs:
            moving_average.follow(layer, copy, momentum)

    def call(self, images, training=None):
        images = self._to_encoder_channels(images)
        if training or self._scoring:
            return self.outputs(images, training=bool(training))
        return self.encoder(images, training=False)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(y_pred, dict):  # `test_on_batch`: the forward pass gave features, the loss needs views
            y_pred = self.outputs(self._to_encoder_channels(x), training=False)
        y_pred = dict(y_pred)
        self._score_online(y_pred.pop(ONLINE, None), y, training)
        loss, logs = self.objective.compute_loss(y_pred, self.steps)
        for name, value in logs.items():
            self.log_trackers[name].update_state(value)
        for penalty in self.losses:
            loss = loss + ops.cast(penalty, loss.dtype)
        if training:
            self.steps.assign_add(1)
        return distribution.scale_loss(loss)

    def _to_encoder_channels(self, images):
        """One-channel images are repeated to RGB when the encoder takes RGB."""
        images = ops.convert_to_tensor(images)
        if len(images.shape) != 4:
            raise ValueError(
                f"Images should have shape (batch, height, width, channels). Received shape: {tuple(images.shape)}"
            )
        if images.shape[-1] == 1 and self._channels() == 3:
            images = ops.repeat(images, 3, axis=-1)
        return images

    # ------------------------------------------------------------------ compile, fit, evaluate
    def compile(self, optimizer="adam", *, jit_compile="auto", **kwargs):
        """As `keras.Model.compile`, without `loss`: the objective is the loss.

        Args:
            optimizer: A Keras optimizer or its name.
            jit_compile: `"auto"` is Keras's own choice, except for TensorFlow on a CPU: there XLA is
                ten times slower on convolutions, and is left off.
            **kwargs: As `keras.Model.compile`.
        """
        for name in ("loss", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` should be left out of `compile`: the objective given to Pretrainer is the loss, and "
                    f"names what is logged. Received: {kwargs[name]!r}"
                )
        if jit_compile == "auto":
            jit_compile = distribution.jit_compile_default()
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        self.optimizer_at_first = self.optimizer_left = None  # its configuration, see `resuming`
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)  # of one that scales the loss
        steps = getattr(inner, "gradient_accumulation_steps", None)
        if steps and (self.objective.needs_batch_statistics or self.teacher_pairs):
            kind = type(self.objective).__name__
            raise ValueError(
                "`optimizer` should not accumulate gradients over batches: "
                + (
                    f"{kind} is a function of the whole batch, and the mean over its parts is another objective. "
                    if self.objective.needs_batch_statistics
                    else f"the moving averages of {kind} would move with every part. "
                )
                + f"Received: gradient_accumulation_steps={steps}. Less memory for the same batch: the objective's "
                "`chunk_size`, `Pretrainer(remat=True)`, lower precision (docs/memory.md)."
            )
        for layer, copy in self.teacher_pairs:
            moving_average.hold(layer, copy)

    def compile_from_config(self, config):
        """Compiles a model that was loaded from a `.keras` file."""
        config = keras.saving.deserialize_keras_object(config)
        # What suited the machine it was saved on need not suit this one.
        self.compile(**config | {"jit_compile": "auto"})
        self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        steps_per_epoch=None,
        **kwargs,
    ):
        """As `keras.Model.fit`; see the class for what `x` may be. `batch_size` defaults to 256.

        Raises:
            NonFiniteLoss: A `FloatingPointError`: the loss became NaN or infinite. The model has its last good weights
                again, and the message names the step and the tensor; see `callbacks.NaNGuard`.
            OutOfMemory: A `MemoryError`: memory did not suffice; the message says what to try.
        """
        if validation_split:
            x, y, validation_data = self._hold_out(x, y, validation_split, validation_data)
        reorder = shuffle and isinstance(x, keras.utils.PyDataset)  # other streams bring their own order
        checkpoint = None
        try:
            self.batches = x if isinstance(x, datasets.Batches) else None  # already while its first batch is looked at
            x, y = self._stream(x, y, batch_size, shuffle=shuffle, steps=steps_per_epoch)
            self.batches = x if isinstance(x, datasets.Batches) else None
            if validation_data is not None:
                images, labels, *_ = (
                    (*validation_data, None) if isinstance(validation_data, tuple) else (validation_data, None)
                )
                size = kwargs.pop("validation_batch_size", None) or batch_size
                validation_data, _ = self._stream(images, labels, size, shuffle=False, fit=False)
            distribution.check_engine(self)
            if not self.optimizer.built:  # a copy of the state has to be whole from the first step on
                with distribution.scope_of(self):
                    self.optimizer.build(self.trainable_variables)
            checkpoint = checkpoint_of(self._with(callbacks))
            place = self._place(checkpoint, x, epochs, kwargs.pop("initial_epoch", 0))
            self._begin_run(x, epochs, place, steps_per_epoch)
            if isinstance(x, datasets.Batches):  # its order is its own: a pure function of seed and epoch
                callbacks = self._with(callbacks, x.callback())
                reorder, steps_per_epoch = False, None  # the batches hold them
            guarded = any(isinstance(callback, NaNGuard) for callback in self._with(callbacks))
            callbacks = callbacks if guarded else self._with(callbacks, NaNGuard())
            if distribution.share_of_process()[1] > 1:
                callbacks = [*self._with(callbacks), StopTogether()]
                verbose = verbose if distribution.is_writer() else 0
            options = {"validation_data": validation_data, "shuffle": reorder, "steps_per_epoch": steps_per_epoch}
            options |= kwargs
            if checkpoint is not None:
                return self._fit_on(x, epochs, place, verbose, callbacks, checkpoint, options)
            options |= {"initial_epoch": place[0], "verbose": verbose}
            return super().fit(x, y, epochs=epochs, callbacks=callbacks, **options)
        except NonFiniteLoss as error:
            raise explain(self, error, x) from None
        except Exception as error:
            if distribution.is_out_of_memory(error) and not isinstance(error, OutOfMemory):
                raise OutOfMemory(memory_advice(self, error)) from error
            raise
        finally:
            self.batches, self.images_per_step = None, None
            if checkpoint is not None:
                note_optimizer(self)
                with contextlib.suppress(Exception):  # what ended the run is what is told
                    checkpoint.close()

    def _place(self, checkpoint, x, epochs, initial_epoch):
        """(epoch, batch) that the run begins or goes on with; the model is brought there."""
        if checkpoint is None:
            return initial_epoch, 0
        check_seekable(x)
        if initial_epoch:
            raise ValueError(
                "`initial_epoch` should be left out with a Checkpoint, which knows where the run goes on. Received: "
                f"{initial_epoch}."
            )
        epoch, batch = checkpoint.begin(self, facts_of(self, x, epochs))
        return epoch, batch if epoch < epochs else 0  # there may be nothing left to do

    def _fit_on(self, x, epochs, place, verbose, callbacks, checkpoint, options):
        """Keras's `fit` from a batch within an epoch on: the rest of that epoch, and the epochs after it."""
        epoch, batch = place
        verbose = (1 if keras.config.is_interactive_logging_enabled() else 2) if verbose == "auto" else verbose
        shown = {"add_progbar": verbose != 0, "verbose": verbose, "epochs": epochs, "steps": len(x)}
        callbacks = RunCallbacks(self._with(callbacks), checkpoint, place, model=self, **shown)
        if batch:
            with x.starting_at(batch), contextlib.nullcontext() if callbacks.last else not_finalized(self.optimizer):
                done = super().fit(x, epochs=epoch + 1, initial_epoch=epoch, verbose=0, callbacks=callbacks, **options)
            if callbacks.last:
                return done
            if self.stop_training:
                self.optimizer.finalize_variable_values(self.trainable_weights)
                return done
            callbacks.next_call()
            epoch += 1
        return super().fit(x, epochs=epochs, initial_epoch=epoch, verbose=0, callbacks=callbacks, **options)

    @staticmethod
    def _with(callbacks, *extra):
        if isinstance(callbacks, keras.callbacks.CallbackList):  # Keras makes a new one, which knows of all
            callbacks = callbacks.callbacks
        return [*extra, *keras.tree.flatten(callbacks or [])]

    def train_on_batch(self, *args, **kwargs):
        """As `keras.Model.train_on_batch`; where schedules need it, after `objective.set_run_length`."""
        if self.objective.uses_run_length and not distribution.as_int(self.objective.epoch_steps):
            raise ValueError(
                f"The schedules of {type(self.objective).__name__} need the length of the run, which `fit` knows. "
                "Before `train_on_batch`, call `model.objective.set_run_length(epochs, steps_per_epoch)`."
            )
        return super().train_on_batch(*args, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, verbose="auto", **kwargs):
        """As `keras.Model.evaluate`: the loss on views drawn with a fixed seed, in inference mode."""
        if not kwargs.get("_use_cached_eval_dataset"):  # else `fit` calls, and has prepared the data
            x, y = self._stream(x, y, batch_size, shuffle=False, fit=False)
        self._scoring = True
        try:
            return super().evaluate(x, y, verbose=verbose, **kwargs)
        finally:
            self._scoring = False

    def predict(self, x, batch_size=None, verbose="auto", **kwargs):
        """Features (N, D), float32, of what `fit` takes.

        Args:
            x: An array (N, H, W, C), (N, H, W, 1) or (N, H, W), a tuple of images and labels, an
                `ImageDataset`, or any stream that `keras.Model.predict` takes.
            batch_size: Images a forward pass, 256 by default for arrays.
            verbose: As `keras.Model.predict`.
            **kwargs: As `keras.Model.predict`.
        """
        x = datasets.as_py_dataset(x[0] if isinstance(x, tuple) else x)
        if isinstance(x, datasets.ImageDataset) or is_array(x):
            images = x.images if isinstance(x, datasets.ImageDataset) else datasets.as_images(x, self._channels())
            x = datasets.Batches(images, batch_size=batch_size or DEFAULT_BATCH_SIZE, shuffle=False)
            batch_size = None
        scoring, self._scoring = self._scoring, False  # a callback may ask for features within `evaluate`
        parts = distribution.parts_of_batch(self)
        even = not isinstance(x, datasets.Batches) or not (x.batch_size % parts or len(x.images) % parts)
        try:
            with contextlib.nullcontext() if even else distribution.alone():
                return super().predict(x, batch_size=batch_size, verbose=verbose, **kwargs)
        finally:
            self._scoring = scoring
