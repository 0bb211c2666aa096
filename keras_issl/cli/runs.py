"""`keras-issl report` and `compare`: what runs were like, as pages."""

import time
from pathlib import Path

from keras_issl.cli.shared import SOURCES, load, say

RUN = "run folder, as pretrain makes it"


def add(commands):
    """Adds the commands to the parser."""
    p = commands.add_parser("report", help="write the page of a run: while it trains, or afterwards")
    p.add_argument("folder", metavar="RUN", help=RUN)
    p.add_argument("--out", help="the .html file to write; default: report.html in the run folder")
    p.add_argument("--data", help=f"the run's images, if they are no longer where they were: {SOURCES}")
    p.add_argument("--split", help="of --data")
    p.add_argument("--profile", action="store_true", help="time the parts of a training step, too")
    p.set_defaults(run=_report)

    p = commands.add_parser("compare", help="put runs side by side: a table, their curves, how their recipes differ")
    p.add_argument("runs", nargs="+", metavar="RUN", help=RUN)
    p.add_argument("--out", help="the .html file to make; default: in reports/")
    p.set_defaults(run=_compare)


def _report(args):
    from keras_issl import runs

    data = None
    if args.data:
        size = runs.read(args.folder).data.get("image_shape") or [None]
        args.limit, args.skip_broken = None, False
        data = load(args, args.split, {"image_size": size[0]})
    path, run = runs.make_page(args.folder, args.out, data=data, profile=args.profile, say=say)
    for verdict in run.verdicts:
        say(f"{verdict.level}: {verdict.title}. {verdict.evidence} {verdict.advice}".rstrip())
    say(f"written to {path}")


def _compare(args):
    from keras_issl import report, runs
    from keras_issl.report.pages.runs import SCALES

    if len(args.runs) < 2:
        raise ValueError(f"`compare` should get at least two run folders. Received: {' '.join(args.runs)}")
    found = [runs.read(folder) for folder in args.runs]
    say(report.table(*report.runs_table(found)))
    for sign, meaning in SCALES.items():
        if any(sign in cell for row in report.runs_table(found)[1] for cell in row if isinstance(cell, str)):
            say(f"{sign} {meaning.format(found[0].name)}")
    header, rows = report.recipe_differences(found)
    if rows:
        say(f"\n{report.table(header, rows)}\nA dash is an argument's default.")
    path = Path(args.out or f"reports/runs-{time.strftime('%Y%m%d-%H%M%S')}.html")
    if path.exists():
        raise ValueError(f"`--out` should name a file that does not exist yet. Received: {path}, which does.")
    path.parent.mkdir(parents=True, exist_ok=True)
    report.runs_page(path, found)
    say(f"\nwritten to {path}")
