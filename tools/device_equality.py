"""Several devices against one: loss and weights after five steps, every objective on every engine.

    python tools/device_equality.py                       # all of it, on virtual devices of the CPU: some minutes
    python tools/device_equality.py --devices 4 --engine torch --objective DISSL CISSL

Each engine runs in processes of its own, once on one device and once on several: random images, views and labels, an
online probe beside the objective, five steps of SGD with momentum. A cell is the largest difference of a weight
(trained or not: batch statistics, teachers, queues, seeds, optimizer slots, the probe), relative to it where it is
larger than 1, and beside it that of the mean loss. "+chunks" and "+remat" are the switches of docs/memory.md: there one
device trains without them. The exit status is 1 where one is over the tolerance.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import many_devices  # noqa: E402
import members  # noqa: E402

SWITCHED = ("DISSL+chunks+remat", "CISSL+chunks", "SimCLR+chunks")  # against one device without those switches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2, help="a multiple of 2; default: 2")
    parser.add_argument("--engine", nargs="*", default=[""], help="parts of names of engines; default: all")
    known = [*members.SMALL, *SWITCHED]
    parser.add_argument("--objective", nargs="*", default=known, choices=known)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()
    engines = [e for e in many_devices.ENGINES if any(part in e for part in options.engine)]
    cells, worst, one = {}, 0.0, {}
    for engine in engines:
        began, backend = time.monotonic(), many_devices.ENGINES[engine][0]
        if backend not in one:
            plain = dict.fromkeys(name.split("+")[0] for name in options.objective)
            one[backend] = many_devices.run(engine, 1, list(plain), timeout=3600)
        many = many_devices.run(engine, options.devices, options.objective, timeout=3600)
        for name in options.objective:
            far = many_devices.distance(many[name], one[backend][name.split("+")[0]])
            cells[engine, name] = f"{far['weights']:.1e} ({far['loss']:.1e})"
            worst = max(worst, *far.values())
        print(f"{engine}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(f"Weights (loss) on {options.devices} devices against one, after {many_devices.STEPS} steps of "
          f"{many_devices.BATCH} images:\n")  # fmt: skip
    print("| objective | " + " | ".join(engines) + " |")
    print("|---|" + "---:|" * len(engines))
    for name in options.objective:
        print(f"| {name} | " + " | ".join(cells[engine, name] for engine in engines) + " |")
    print(f"\nLargest difference, logs included: {worst:.1e}; tolerance {options.tolerance:.0e}.")
    return int(worst > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
