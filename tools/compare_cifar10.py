"""SimCLR, CISSL and DISSL under one budget on CIFAR-10, probed alike; prints one table and can be resumed.

    python tools/compare_cifar10.py DATA OUT [--resume]

DATA is a folder with train.parquet and test.parquet in Hugging Face's layout. The default is a run for two CPU
cores; `--encoder resnet18 --epochs 200 --precision mixed_bfloat16` is the one for a GPU.
"""

import argparse
import os
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from keras_issl import _backend, comparison, datasets, recipes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--encoder", default="narrow", choices=("narrow", "resnet18", "resnet50"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("--num-classes", type=int, default=1024, help="DISSL's equivalence classes C")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--limit", type=int, help="use only so many images of each split, for a trial")
    args = parser.parse_args()

    train, test = (datasets.load(args.data, split=s, image_size=32, limit=args.limit) for s in ("train", "test"))

    def recipe(objective):
        options = {"objective_args": {"num_classes": args.num_classes}} if objective == "dissl" else {}
        return recipes.small_images(
            objective,
            image_size=32,
            encoder=args.encoder,
            epochs=args.epochs,
            batch_size=args.batch_size,
            precision=args.precision,
            seed=args.seed,
            **options,
        )

    began = time.monotonic()
    result = comparison.compare(
        recipe, train, test, args.out, shots=(1, 10, 100, None), draws=args.draws, resume=args.resume
    )
    if result is None:
        print(f"Stopped; the same command with --resume goes on in {args.out}.")
        return
    minutes = (time.monotonic() - began) / 60
    print(f"\n{result.table()}\n\n{result.protocol}")
    print(
        f"Encoder {args.encoder}, {args.precision}, {_backend.NAME} on {platform.machine()} with "
        f"{os.cpu_count()} CPU cores; this call took {minutes:.0f} minutes. Written to {args.out}."
    )


if __name__ == "__main__":
    main()
