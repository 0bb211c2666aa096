"""The seam between the library and its backends: replicas, devices and native kernels.

This is the one room (beside the checkpoint converter) that imports TensorFlow, PyTorch or JAX, and it does
so inside functions. Everything else is written in `keras.ops`.

- **The global batch** (`replicas`): `gather`, `global_mean` and the like. An objective of this library is a function
  of the whole batch (the entropy of a mean is no mean of entropies), so it asks for the global batch here.
- **Engines** (`engines`): how `fit` runs on several devices, and what it refuses there.
- **What the hardware wants** (`devices`): `has_accelerator`, `jit_compile_default`, `host_array`.
- **Layers with a native kernel** (`layers`): `BatchNormalization`, `Conv2D` and `MaxPooling2D`.
- **Memory** (`chunks`): `recompute` and `sum_chunks` compute in the backward pass again what they do not keep.
- **Export** (`export`): `Exportable` fills in what each backend's exporter needs for batches of any size.
"""

from keras_issl.distribution.chunks import recompute, sum_chunks
from keras_issl.distribution.devices import (
    as_int,
    dtype_scope,
    gradients,
    has_accelerator,
    host_array,
    is_out_of_memory,
    jit_compile_default,
    prefetches,
)
from keras_issl.distribution.engines import (
    DataParallel,
    any_process,
    arrays_from_first,
    check_batch,
    check_engine,
    check_parts,
    data_parallel,
    from_first,
    is_writer,
    parts_of_batch,
    scope_of,
    share_of_process,
)
from keras_issl.distribution.export import Exportable
from keras_issl.distribution.layers import BatchNormalization, Conv2D, MaxPooling2D
from keras_issl.distribution.replicas import (
    alone,
    draw,
    gather,
    global_mean,
    num_replicas,
    pool_moments,
    replica_index,
    replica_mean,
    scale_gradients,
    scale_loss,
)

__all__ = [
    "alone",
    "any_process",
    "arrays_from_first",
    "as_int",
    "BatchNormalization",
    "check_batch",
    "check_engine",
    "check_parts",
    "Conv2D",
    "data_parallel",
    "DataParallel",
    "draw",
    "dtype_scope",
    "Exportable",
    "from_first",
    "gather",
    "global_mean",
    "gradients",
    "has_accelerator",
    "host_array",
    "is_out_of_memory",
    "is_writer",
    "jit_compile_default",
    "MaxPooling2D",
    "num_replicas",
    "parts_of_batch",
    "pool_moments",
    "prefetches",
    "recompute",
    "replica_index",
    "replica_mean",
    "scale_gradients",
    "scale_loss",
    "scope_of",
    "share_of_process",
    "sum_chunks",
]
