"""Out of memory, as a message that names what to change."""

import re

from keras_issl import datasets


class OutOfMemory(MemoryError):
    """Memory, of the host or of a device, did not suffice for a training step, or for what comes before the first."""


def memory_advice(model, error):
    """What to try where memory did not suffice.

    Args:
        model: The `Pretrainer`, still within `fit`.
        error: What the backend said.

    Returns:
        A message: what the batch size is, and the switches that are still off, those that cost least first.
    """
    size = model.images_per_step or (None if model.batches is None else model.batches.batch_size)
    tries = []
    images = None if model.batches is None else model.batches.images
    if isinstance(images, datasets.DeviceImages):
        tries.append(
            "leaving the images on the host, without `on_device()` or --on-device: on the device they take "
            f"{images.nbytes / 1e6:,.0f} MB"
        )
    if getattr(model.objective, "chunk_size", 0) is None:
        tries.append(f"`chunk_size` of {type(model.objective).__name__}, the same loss in parts")
    if model._remat is None:
        tries.append("`Pretrainer(remat=True)`, the same weights for one more forward pass")
    if model.encoder.dtype_policy.compute_dtype == "float32":
        tries.append('keras.config.set_dtype_policy("mixed_bfloat16") before the encoder is made')
    half = f"a smaller batch ({size // 2} instead of {size})" if size and size > 1 else "a smaller batch"
    tries.append(f"{half}, which for most objectives is another run")
    said = re.sub(r"\s+", " ", str(error)).strip()
    # How many images a step has is known once training begins; and with it images are copied to the device.
    begun = model.images_per_step and getattr(images, "copied", True)
    when = "in a training step" if begun else "before the first step, in batches"
    return (
        f"Out of memory {when} of {size or 'an unknown number of'} images. Try {'; '.join(tries)}. "
        f"docs/memory.md says what each costs. ({type(error).__name__}: {said[:200]})"
    )
