"""Publishes the built-in presets on the Hugging Face Hub. For a maintainer with a token; it needs nobody to watch it.

    python tools/publish_zoo.py --dry-run
    HF_TOKEN=hf_... python tools/publish_zoo.py --images hf:ILSVRC/imagenet-1k --split validation

For each preset: download the authors' release file and take its SHA-256; convert it; hold the features against a plain
PyTorch network with the file's tensors, on golden and random pictures (1e-5 of the largest feature at most); write the
card; push; fetch it from the Hub again and check that; record hashes, golden features, `verified` and the commit in
this repository's `presets/`, for review and a commit by hand.

The same command goes on after an interruption, whenever that was: `state.json` in the work folder knows how far each
preset is. Presets whose commit is on the Hub are skipped; to publish one anew, remove its entry there and its `hub`
from `presets/NAME/metadata.json`. A preset that fails is named, the others go on, and the exit status is 1.
KERAS_ISSL_MIRROR names a server with copies of the release files.

A dry run does everything before the push and leaves the converted presets, about 100 MiB each, in the work folder; the
real one goes on from there. Otherwise at most one release file and one preset lie there at a time.
"""

import argparse
import gc
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments=None):
    args = _parser().parse_args(arguments)
    # Features in float32 on the CPU: a GPU's TF32 differs from PyTorch by more than a wrong epsilon.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path[:0] = [str(ROOT / part) for part in ("", "tools", "tests")]
    import filelock

    from keras_issl.zoo import cache, conversion, format, registry

    try:
        conversion.require_torch()
        import zoo_checks
        import zoo_steps

        names = args.only or registry.released_names()
        sizes = [format.read_metadata(registry.shipped_folder(name))["preprocessing"] for name in names]
        organization = args.organization or registry.organization()
        if not args.dry_run:
            user = zoo_checks.require_write_access(organization, names[0])
            _say(f"publishing {len(names)} presets to {organization} as {user}")
        pictures = None
        if args.images:
            pictures = zoo_checks.load_pictures(args.images, args.split)
            pictures(sizes[0])  # before the first download, in case that it fails
        work = (args.work or cache.cache_folder() / "publish").expanduser().absolute()
        _check_work(work)
        work.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(work / ".lock", timeout=0):
            for left in [*work.glob(".check-*"), *(left for name in names for left in work.glob(f".{name}-*"))]:
                if left.is_dir() and not left.is_symlink():  # a temporary folder of a run that was killed
                    shutil.rmtree(left)
            state = zoo_steps.State(work / "state.json", organization)
            options = {"private": args.private, "tag": args.tag or None, "pictures": pictures}
            return _publish(names, state, args.dry_run, lambda *a, **k: zoo_steps.Publication(*a, **k, **options))
    except filelock.Timeout:
        problem = f"Another run is at work in {work}. Wait for it, or choose another --work."
    except KeyboardInterrupt:
        problem = "Interrupted. The same command goes on."
    except (ValueError, OSError, ImportError) as error:
        problem = error
    print(problem, file=sys.stderr)
    return 2


def _check_work(work):
    """Raises a `ValueError` for a folder of something else: what is made here replaces what is there."""
    if work.exists() and not (work / ".lock").exists() and any(work.iterdir()):
        raise ValueError(
            f"--work should be a folder of its own, a new or empty one or that of an earlier run. Received: {work}."
        )


def _publish(names, state, dry_run, make):
    """All presets, one after the other; returns the exit status."""
    import keras

    publications = []
    for number, name in enumerate(names, 1):
        label = f"[{number}/{len(names)}] {name}: "
        publication = make(name, state, say=lambda line, label=label: _say(label + line))
        publications.append(publication)
        try:
            if not publication.run(dry_run):
                _say(f"{label}nothing left to do" + (", it is on the Hub" if publication.is_published else ""))
        except Exception as error:  # whatever it is, the others are none the worse for it
            publication.entry["error"] = " ".join(str(error).split()) or type(error).__name__
            state.save()
            _say(f"{label}FAILED: {publication.entry['error']}")
        keras.backend.clear_session()
        gc.collect()
    return _summarise(publications, state, dry_run)


def _summarise(publications, state, dry_run):
    """The table of all presets, and what was written where; returns the exit status."""
    from keras_issl import report
    from keras_issl.zoo import registry

    header = ["preset", "MiB", "release file", "difference", "commit", "seconds"]
    rows = []
    for publication in publications:
        entry = publication.entry
        digest, difference = (entry.get("source") or {}).get("sha256"), entry.get("difference")
        commit = entry["commit"][:12] if publication.is_published else "dry run"
        rows.append(
            [
                publication.name,
                f"{entry['bytes'] / 2**20:.1f}" if "bytes" in entry else "–",
                digest[:12] if digest else "–",
                "–" if difference is None else f"{difference:.1e}",
                f"failed: {_shortened(entry['error'])}" if "error" in entry else commit,
                f"{entry.get('seconds', 0):.0f}",
            ]
        )
    print("\n" + report.table(header, rows) + "\n", flush=True)
    failed = sum("error" in publication.entry for publication in publications)
    count = f"{len(rows) - failed} of {len(rows)} presets"
    if dry_run:
        _say(f"{count} converted and verified in {state.path.parent}. Nothing was published or recorded.")
    else:
        _say(
            f"{count} published under hf://{state.organization}/ and recorded in {registry.presets_folder()}, which is "
            f"to be reviewed and committed; the state is in {state.path}."
        )
    return int(failed > 0)


def _shortened(text, limit=100):
    text = text.replace("|", "/")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _say(line):
    print(line, flush=True)


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these presets; default: all")
    parser.add_argument("--organization", help="an organisation or a user; default: keras-issl")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="default: `publish` in the cache of keras_issl")
    parser.add_argument("--dry-run", action="store_true", help="all but publishing; needs no token and asks no Hub")
    parser.add_argument("--images", metavar="DATA", help="a folder, Parquet files or hf:NAME for pictures on the cards")
    parser.add_argument("--split", help="of DATA, where it has several")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--tag", default="v1", help="of the commits, '' for none; default: %(default)s")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
