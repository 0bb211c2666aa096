"""Has thousands of hostile presets and checkpoints read, and reports what came of them.

    python tools/fuzz.py --cases 5000 --seed 0 --out report.md
    python tools/fuzz.py --case 123 --seed 0 --keep broken        # one case again, its folder kept

Exit status 1 if any broke a rule of `tests/fuzzing`; each is named with the command that runs it again.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import fuzzing

RESULTS = ("refused, stale", "refused, signed", "read, stale", "read, signed")


def result(outcome):
    """Column of the report. A checkpoint has no hash beside it: stale is one whose checksums were left alone."""
    return f"{outcome.result}, {outcome.mode}"


def rows(outcomes):
    """Header and rows of the table: one row a kind of mutation, one for all."""
    header = ["file", "mutation", *RESULTS, "violations", "peak MiB", "median ms", "longest s"]
    groups = {}
    for outcome in outcomes:
        groups.setdefault((outcome.target, outcome.kind), []).append(outcome)
    found = []
    for (target, kind), group in [*sorted(groups.items()), (("both", "all"), outcomes)]:
        counts = [sum(result(o) == column for o in group) for column in RESULTS]
        seconds = [o.seconds for o in group]
        found.append([
            target, kind, *counts, sum(bool(o.violations) for o in group), max(o.peak for o in group) >> 20,
            f"{statistics.median(seconds) * 1000:.0f}", f"{max(seconds):.1f}",
        ])  # fmt: skip
    return header, found


def versions():
    names = ["keras", "tensorflow", "tensorflow-cpu", "torch", "jax", "h5py", "numpy"]
    found = [f"Python {platform.python_version()}", f"backend {os.environ.get('KERAS_BACKEND', 'default')}"]
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def report(outcomes, again, seconds):
    """Markdown: what was asked, the table, the violations with the commands that show them again."""
    header, lines = rows(outcomes)
    table = ["| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * 2 + ["---:"] * 8, *lines]]
    broken = [o for o in outcomes if o.violations]
    died = sum(o.result == "died" for o in outcomes)
    text = [
        f"# {len(outcomes):,} hostile files: {len(broken)} broke a rule, {died} brought the process down", "",
        f"`{again(outcomes[0].number if len(outcomes) == 1 else None)}`, {seconds:.0f} s. {versions()}.",
        "", *table, "",
    ]  # fmt: skip
    for outcome in broken:
        text += [
            f"- case {outcome.number}, {outcome.target}, {outcome.kind}, {outcome.mode}, {outcome.action}: "
            f"`{again(outcome.number)}`",
            *(f"  - {' '.join(str(violation).split())}" for violation in outcome.violations),
        ]
    return "\n".join(text) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=fuzzing.TARGETS)
    parser.add_argument("--case", type=int, help="run this case alone")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="folder for the cases that break a rule"
    )
    parser.add_argument("--out", type=Path, help="file for the report; it is printed anyway")
    args = parser.parse_args(arguments)
    only = f" --only {args.only}" if args.only else ""

    def again(number=None):
        cases = f"--cases {args.cases}" if number is None else f"--case {number}"
        return f"python tools/fuzz.py {cases} --seed {args.seed}{only}"

    first, cases = (0, args.cases) if args.case is None else (args.case, 1)
    outcomes, start, broken = [], time.monotonic(), 0
    for outcome in fuzzing.run(cases, args.seed, args.only, first=first, keep=args.keep.resolve()):
        outcomes.append(outcome)
        broken += bool(outcome.violations)
        if args.case is not None:
            print(outcome)
        elif len(outcomes) % 10 == 0 or outcome.violations or len(outcomes) == cases:
            rate = len(outcomes) / (time.monotonic() - start)
            line = f"{len(outcomes):,}/{cases:,}, {rate:.0f}/s, {broken} broke a rule"
            print(f"\r{line}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    text = report(outcomes, again, time.monotonic() - start)
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    if broken:
        print(f"The folders of the cases that broke a rule are in {args.keep}.", file=sys.stderr)
    return int(broken > 0)


if __name__ == "__main__":
    raise SystemExit(main())
