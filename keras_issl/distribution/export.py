"""Export of models of images for inference, on each backend."""

import warnings

import keras


class Exportable:
    """Mixin of a functional model of images (B, H, W, C): `export` works for batches of any number and size.

    The artefact takes float32 images in [0, 255]. Without `input_signature`, every axis that the model leaves
    open (the batch, and mostly height and width) is open in the artefact.
    """

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """Writes the model for inference, as `keras.Model.export` does.

        Args:
            filepath: String or path: a folder for a SavedModel, else a file (`.pt2` for `"torch"`).
            format: `"tf_saved_model"` (on TensorFlow, or on JAX with TensorFlow installed), `"onnx"` (on TensorFlow
                with tf2onnx, on torch with onnx, on JAX with jax2onnx), `"torch"` (on torch: a
                `torch.export.ExportedProgram`), or another format of `keras.Model.export`.
            verbose: Boolean, whether to say where the artefact is.
            input_signature: A list of one `keras.InputSpec`, to fix axes.
            **kwargs: Arguments of the exporter, see `keras.Model.export`.

        Raises:
            ValueError: no artefact of this format that works can be written here.
        """
        backend = keras.config.backend()
        self._require_exportable(backend, format, input_signature)
        if backend == "jax" and format == "tf_saved_model":
            # Inference needs no gradient, and JAX has none of a strided convolution of images of unknown size.
            kwargs["jax2tf_kwargs"] = {"with_gradient": False} | (kwargs.get("jax2tf_kwargs") or {})
        if input_signature is None:
            shape = self.inputs[0].shape
            if (backend, format) == ("torch", "torch") and "dynamic_shapes" not in kwargs:
                from torch.export import Dim

                kwargs["dynamic_shapes"] = {axis: Dim.DYNAMIC for axis, size in enumerate(shape) if size is None}
                # Keras would record one image of one pixel. Sizes that differ, or PyTorch takes them for the same.
                shape = tuple(size or sample for size, sample in zip(shape, (2, 224, 192, 3), strict=True))
            input_signature = [keras.InputSpec(shape=shape, dtype="float32", name="images")]
        with warnings.catch_warnings():
            # The tracers warn of every shape that Keras and this library read, and of their own age.
            warnings.filterwarnings("ignore", module=r"keras(_issl)?\b")
            warnings.simplefilter("ignore", DeprecationWarning)
            super().export(filepath, format, verbose=verbose, input_signature=input_signature, **kwargs)

    def _require_exportable(self, backend, format, input_signature):
        """Refuses what the exporters would only fail at late, or write so that nothing can read it."""
        elsewhere = "Save the model, load it under KERAS_BACKEND=tensorflow and export it there."
        if (backend, format, input_signature) == ("torch", "tf_saved_model", None):
            raise ValueError(
                "`format` should be 'onnx' or 'torch' on the torch backend, from which Keras writes no SavedModel for "
                f"batches of any size. Received: 'tf_saved_model'. {elsewhere}"
            )
        if format != "onnx":
            return
        layers = list(self._flatten_layers())
        dtypes = sorted({layer.compute_dtype for layer in layers} - {"float32"})
        if dtypes:
            raise ValueError(
                "`format` should be 'onnx' only for a model that computes in float32, all that ONNX Runtime runs. "
                f'Received: a model with layers in {dtypes}. Load it with `dtype="float32"`.'
            )
        if backend == "jax" and any(isinstance(layer, keras.layers.MaxPooling2D) for layer in layers):
            raise ValueError(
                "`format` should be 'tf_saved_model' for a model with max-pooling on JAX, whose ONNX form ONNX Runtime "
                f"cannot run. Received: 'onnx'. {elsewhere}"
            )
