"""All ten objectives under one budget on CIFAR-10, probed alike: one table, resumable at any point.

    python tools/compare_cifar10.py DATA OUT                              # 10 objectives x 3 seeds
    python tools/compare_cifar10.py DATA OUT --objectives dino byol       # a part; the next call adds to it
    python tools/compare_cifar10.py DATA OUT --encoder resnet18 --epochs 200 --precision mixed_bfloat16   # on a GPU

DATA is a folder with train.parquet and test.parquet in Hugging Face's layout. OUT holds a folder for each run, a row
for each finished one in results.csv, comparison.md and comparison.png. Stopped or killed, the same call goes on;
finished rows stay. A call with another budget (epochs, batch, encoder, images, an objective's settings) is refused.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from keras_issl import comparison, datasets, recipes

SHORT = 20  # epochs; below, the settings of runs of hundreds of epochs do not fit


def settings(objective, epochs, steps):
    """What an objective has otherwise than `recipes.small_images` says, with the reasons: the run is short.

    They were set before any accuracy was seen, from the lengths that the papers trained for; none was searched.

    Args:
        objective: Key of `recipes.OBJECTIVES`.
        epochs: Of the run.
        steps: Of the run.
    """
    if epochs >= SHORT:
        return {}
    return {
        # 16384 classes need more batches than there are. Chosen: four classes an image of a batch.
        "dissl": {"num_classes": 1024},
        "dino": {
            # The paper freezes the prototypes for 1 of 100 to 800 epochs: an epoch would be half of the default run.
            "freeze_epochs": 0,
            # The paper warms up for 30 of 300 epochs or more: under an epoch here.
            "warmup_epochs": 0,
            # 0.996 forgets half in 173 steps, most of an epoch of 195. BYOL's and MoCo v3's momentum in the recipes.
            "teacher_momentum": (0.99, 1.0),
        },
        "swav": {
            # The paper's queue starts at epoch 15, after the end of this run.
            "queue_length": 0,
            # Without it, no more prototypes than a batch has views, to be filled in equal parts; lightly's number, too.
            "num_prototypes": 512,
            # The paper freezes them for one of 200 epochs at this batch size.
            "freeze_steps": max(1, steps // 200),
        },
    }.get(objective, {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--objectives", nargs="+", default=list(comparison.LABELS), choices=list(comparison.LABELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--encoder", default="narrow", choices=("narrow", "resnet18", "resnet50"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("--limit", type=int, help="use only so many images of each split")
    args = parser.parse_args()

    try:
        train, test = (datasets.load(args.data, split=s, image_size=32, limit=args.limit) for s in ("train", "test"))
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None

    def recipe(objective):
        return recipes.small_images(
            objective,
            image_size=32,
            encoder=args.encoder,
            epochs=args.epochs,
            batch_size=args.batch_size,
            precision=args.precision,
            objective_args=settings(objective, args.epochs, len(train) // args.batch_size * args.epochs),
        )

    began = time.monotonic()
    try:
        result = comparison.compare_seeds(
            recipe, train, test, args.out, objectives=args.objectives, seeds=args.seeds, say=say
        )
    except (ValueError, FloatingPointError) as error:
        raise SystemExit(f"{error}\nFinished rows, if any, are in {args.out}.") from None
    if result is None:
        say(f"Stopped; the same command goes on in {args.out}.")
        return
    say(f"\n{result.table()}\n\n{result.protocol}\nEncoder: {args.encoder}.")
    say(f"This call took {(time.monotonic() - began) / 60:.0f} minutes. Written to {args.out}.")


def say(line):
    print(line, flush=True)


if __name__ == "__main__":
    main()
