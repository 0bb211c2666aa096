"""In which order a pass takes the images: a pure function of the seed, the pass and the data."""

import numpy as np

RUN = 256  # consecutive images that count as a block where the source knows of none


def check_order(shuffle, shards, batch_size):
    """Raises a `ValueError` for what `Batches` takes as `shuffle` and `shards` and cannot be.

    Args:
        shuffle: True, False or images a window.
        shards: Parts of the data.
        batch_size: Images a batch.
    """
    window = isinstance(shuffle, int | np.integer) and not isinstance(shuffle, bool)
    if not (isinstance(shuffle, bool) or (window and shuffle > 1)):
        raise ValueError(
            "`shuffle` should be True, False, or the images of a window within which they are shuffled, above 1. "
            f"Received: {shuffle!r}."
        )
    if isinstance(shards, bool) or not isinstance(shards, int | np.integer) or shards < 1 or batch_size % shards:
        raise ValueError(
            "`shards` should be a positive integer that divides the batch size. Received: "
            f"shards={shards!r} for batch_size={batch_size}."
        )


def order_of_pass(count, *, seed, number, shuffle=True, blocks=None, shards=1):
    """The images of one pass, for each shard in the order in which it brings them.

    With a window W, the blocks come in a new order each pass, and images are shuffled within every W of that order. So
    what is read lies in the few blocks of a window; how well images are mixed depends on W, which should be several
    blocks and many batches.

    Args:
        count: Number of images N.
        seed: With the pass it decides everything: `np.random.default_rng([seed, number])` draws.
        number: Which pass, from 0.
        shuffle: True: a permutation of all images; an integer W: by blocks, and within windows of W images; False: in
            the order of the data.
        blocks: (N,) integers, equal for images that are read together, such as a Parquet file's row group. `None`:
            every 256 consecutive images are a block.
        shards: S, equal parts of the order, each of which is shuffled for itself; N mod S images are left out.

    Returns:
        Integer array (S, N // S).

    Example:

    ```python
    order_of_pass(1000, seed=0, number=3, shuffle=128)  # (1, 1000)
    ```
    """
    length = count // shards
    if shuffle is False:
        return np.arange(length * shards).reshape(shards, length)
    rng = np.random.default_rng([seed, number])
    if shuffle is True:
        return rng.permutation(count)[: length * shards].reshape(shards, length)
    blocks = np.arange(count) // RUN if blocks is None else np.asarray(blocks)
    _, names = np.unique(blocks, return_inverse=True)  # 0, 1, ...
    places = rng.permutation(int(names.max()) + 1)  # of each block among them
    order = np.argsort(places[names], kind="stable")[: length * shards].reshape(shards, length)
    for part in order:
        for start in range(0, length, shuffle):
            rng.shuffle(part[start : start + shuffle])
    return order
