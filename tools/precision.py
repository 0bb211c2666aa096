"""Does a precision train? The same short run of DISSL in several dtype policies: losses, and whether all is finite.

    python tools/precision.py                                        # 200 steps of C = 16,384 in three policies
    python tools/precision.py --policies mixed_bfloat16 --steps 1000

8 x 8 images of digits (scikit-learn's, no download), `Affine` views, a small ResNet, Adam; every policy starts from the
same weights and takes the same images in the same order. It prints a Markdown table, and fails where a loss of a step
or a weight at the end is NaN or infinite. The backend is that of KERAS_BACKEND.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


def run(policy, *, steps, classes, batch, learning_rate):
    """Trains in one dtype policy.

    Returns:
        {"losses": of each step, "finite": whether they and all weights at the end are, "seconds", "left out": steps
        that the scaling of a float16 loss left out}.
    """
    import keras
    import numpy as np

    import keras_issl

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        data = keras_issl.datasets.load("digits", split="train")
        data = data.take(len(data) - len(data) % batch)
        encoder = keras_issl.encoders.ResNet(blocks=(1, 1), width=16, image_size=8, stem="cifar")
        objective = keras_issl.objectives.DISSL(num_classes=classes)
        model = keras_issl.Pretrainer(encoder, objective, keras_issl.augmentations.Affine(8, seed=0), seed=0)
        model.compile(keras.optimizers.Adam(learning_rate))
        losses, means = [], []

        def note(step, logs):  # Keras logs the mean since the epoch began
            means.append(float(logs["loss"]) * (step + 1))
            losses.append(means[-1] - (means[-2] if step else 0.0))

        begin = time.perf_counter()
        per_epoch = len(data) // batch
        while len(losses) < steps:
            done = len(losses) // per_epoch
            watch = keras.callbacks.LambdaCallback(on_train_batch_end=note)
            model.fit(data, batch_size=batch, initial_epoch=done, epochs=done + 1, verbose=0, callbacks=[watch])
        seconds = time.perf_counter() - begin
    finally:
        keras.config.set_dtype_policy("float32")
    weights = [keras.ops.convert_to_numpy(w) for w in model.weights]
    applied = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    return {
        "losses": losses,
        "finite": bool(np.isfinite(losses).all() and all(np.isfinite(w).all() for w in weights)),
        "seconds": seconds,
        "left out": len(losses) - applied,
    }


def main(arguments=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    p.add_argument("--steps", type=int, default=200, help="at least so many, in whole epochs (200)")
    p.add_argument("--classes", type=int, default=16384, help="C (16384)")
    p.add_argument("--batch", type=int, default=64, help="images a step (64)")
    p.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam (0.001)")
    options = p.parse_args(arguments)
    import keras

    given = {"steps": options.steps, "classes": options.classes, "batch": options.batch}
    found = {policy: run(policy, learning_rate=options.learning_rate, **given) for policy in options.policies}
    print(
        f"Keras {keras.__version__}, {keras.config.backend()}, {platform.machine()}, {os.cpu_count()} cores; {given}\n"
    )
    print("| policy | steps | left out | loss, first 10 steps | loss, last 10 steps | all finite | seconds |")
    print("|---|---|---|---|---|---|---|")
    for policy, one in found.items():
        first, last = (sum(part) / len(part) for part in (one["losses"][:10], one["losses"][-10:]))
        finite = "yes" if one["finite"] else "NO"
        numbers = f"{len(one['losses'])} | {one['left out']} | {first:.4f} | {last:.4f}"
        print(f"| `{policy}` | {numbers} | {finite} | {one['seconds']:.0f} |")
    if not all(one["finite"] for one in found.values()):
        raise SystemExit("A loss or a weight is NaN or infinite.")


if __name__ == "__main__":
    main()
