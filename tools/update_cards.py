"""Writes the card of every preset from its metadata.

    python tools/update_cards.py [--check] [--folder PRESETS]

With --check nothing is written: stale cards are named, and the exit status is 1 if there are any.
"""

import argparse
from pathlib import Path

from keras_issl.zoo import cards, registry


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--folder", type=Path, help="default: the presets of this repository")
    args = parser.parse_args(arguments)
    stale = 0
    for path in sorted((args.folder or registry.presets_folder()).glob("*/metadata.json")):
        readme = path.with_name("README.md")
        text = cards.builtin_card(path.parent)
        if readme.is_file() and readme.read_bytes() == text.encode():
            continue
        stale += 1
        if not args.check:
            readme.write_bytes(text.encode())
        print(f"{'stale' if args.check else 'written'}: {readme}")
    return int(args.check and stale > 0)


if __name__ == "__main__":
    raise SystemExit(main())
