"""Encoders against plain PyTorch on every backend: one Markdown table of what a conversion costs in numbers.

    python tools/parity.py
    python tools/parity.py --backends torch jax

For each shape of the released checkpoints (ResNet-50 with d = 2048, 4096, 8192) a network in plain `torch.nn`
(`tests/torch_resnet.py`) is given synthetic weights, saved with the released keys and converted; `encoder.predict`
is then held against it. Each backend lives in a process of its own.

- float32: the largest difference of a feature, as a share of the largest feature, at 224 pixels and at an odd size.
- bfloat16: the smallest cosine between an image's features in `mixed_bfloat16` and PyTorch's in float32, and the
  same once the mean over the images is taken off both, as random networks see all images alike.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TAG = "@@"  # before what a worker says to the parent: libraries print too
BACKENDS = ("jax", "tensorflow", "torch")
SHAPES = {2048: None, 4096: 4096, 8192: 8192}  # features -> d in the names of the released files
SIZES = {"224 x 224": (2, 224, 224, 3), "161 x 187": (2, 161, 187, 3)}
GOALS = "float32 < 1e-5, bfloat16 cosine > 0.999"


def write_references(folder):
    """The checkpoints, the images and PyTorch's features, for all backends."""
    import numpy as np
    import torch
    import torch_resnet

    rng = np.random.default_rng(0)
    images = {size: rng.integers(0, 256, shape).astype("uint8") for size, shape in SIZES.items()}
    np.savez(folder / "images.npz", **images)
    for width, dim in SHAPES.items():
        network = torch_resnet.make(50, dim, seed=width)
        torch.save(network.state_dict(), folder / f"{width}.torch")
        np.savez(folder / f"{width}.npz", **{size: network.features(x) for size, x in images.items()})
    return f"torch {torch.__version__}"


def cosine(a, b):
    """The smallest cosine between rows of (B, D)."""
    import numpy as np

    a, b = a.astype("float64"), b.astype("float64")
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def worker(folder):
    """Measures one backend and says so in lines of JSON."""
    import importlib.metadata

    import keras
    import numpy as np

    import keras_issl
    from keras_issl.zoo import conversion

    images = np.load(folder / "images.npz")
    for width in SHAPES:
        preset, _ = conversion.convert(folder / f"{width}.torch", folder / keras.config.backend() / str(width))
        expected, row = np.load(folder / f"{width}.npz"), {"d": width}
        encoder = keras_issl.from_preset(preset)
        half = keras_issl.from_preset(preset, dtype="mixed_bfloat16")
        for size in SIZES:
            features, reference = encoder.predict(images[size], verbose=0), expected[size]
            row[size] = float(np.abs(features - reference).max() / np.abs(reference).max())
            features = half.predict(images[size], verbose=0)
            row[f"cosine {size}"] = cosine(features, reference)
            row[f"centred {size}"] = cosine(features - reference.mean(0), reference - reference.mean(0))
        package = {"jax": "jax", "tensorflow": "tensorflow-cpu", "torch": "torch"}[keras.config.backend()]
        try:
            row["version"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            row["version"] = importlib.metadata.version("tensorflow")
        row["keras"] = keras.__version__
        print(TAG + json.dumps(row), flush=True)


def measure(backend, folder):
    """The rows of one backend, from a process of its own."""
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, __file__, "--worker", str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"The {backend} backend failed:\n{result.stderr[-3000:]}")
    return [json.loads(line.removeprefix(TAG)) for line in result.stdout.splitlines() if line.startswith(TAG)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if args.worker:
        return worker(args.worker)

    print("| d | backend | " + " | ".join(f"float32, {size}" for size in SIZES), end=" | ")
    print(" | ".join(f"bfloat16 cosine (centred), {size}" for size in SIZES) + " |")
    print("|---|---|" + "---|" * 2 * len(SIZES))
    versions, worst, least = [], 0.0, 1.0
    with tempfile.TemporaryDirectory() as folder:
        reference = write_references(Path(folder))
        for backend in args.backends:
            for row in measure(backend, Path(folder)):
                cells = [f"{row[size]:.1e}" for size in SIZES]
                cells += [f"{row[f'cosine {size}']:.6f} ({row[f'centred {size}']:.4f})" for size in SIZES]
                print(f"| {row['d']} | {backend} | " + " | ".join(cells) + " |", flush=True)
                worst = max(worst, *(row[size] for size in SIZES))
                least = min(least, *(row[f"cosine {size}"] for size in SIZES))
            versions.append(f"{backend} {row['version']}")
    print(
        "\nSynthetic weights with the released keys, 2 random images a size, `encoder.predict` against plain "
        f"{reference} in float32. {', '.join(versions)}, keras {row['keras']}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} CPU cores."
    )
    met = worst < 1e-5 and least > 0.999
    print(f"Goals ({GOALS}): {'met' if met else 'missed'}; worst {worst:.1e}, least {least:.6f}.")
    raise SystemExit(not met)


if __name__ == "__main__":
    main()
