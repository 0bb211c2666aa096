"""A newcomer's tour of the Hub, as a transcript: pre-train, push, and load by revision elsewhere on another backend.

    python tools/hub_tour.py
    python tools/hub_tour.py --second /path/to/another/environment/bin/python

The commands are the real ones; the Hub is the stand-in of the tests, on this machine. Each side has a home folder and
a cache of its own; `--second` gives the loading side a virtual environment of its own, too.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
TOKEN = "hf_write"
PUSHING = """
keras-issl pretrain digits --epochs 60 --out runs/digits
keras-issl neighbours runs/digits digits neighbours.png
keras-issl push runs/digits hf://user/digits --tag v1 --picture neighbours.png
keras-issl push runs/digits hf://user/digits --tag v1 --picture neighbours.png
"""
LOADING = """
keras-issl probe hf://user/digits@v1 digits --shots 1 10 --verify --out digits.html
keras-issl probe hf://user/digits@v2 digits
"""
NOISE = re.compile(r"^(WARNING: All log|[IWE]\d{4} |\d{4}-\d\d-\d\d |To enable the following).*\n?", re.M)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--second", default=sys.executable, help="Python of the environment that loads")
    parser.add_argument("--backends", nargs=2, default=("tensorflow", "torch"), metavar=("PUSH", "LOAD"))
    args = parser.parse_args(arguments)

    from hub_server import HubServer

    with tempfile.TemporaryDirectory() as folder, HubServer(Path(folder) / "hub") as hub:
        sides = (
            ("one machine", PUSHING, sys.executable, TOKEN, args.backends[0]),
            ("another", LOADING, args.second, None, args.backends[1]),
        )
        for where, commands, python, token, backend in sides:
            home = Path(folder) / where.replace(" ", "-")
            home.mkdir()
            environment = hub.environment(home, token=token, backend=backend)
            environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"
            print(f"# on {where}, {backend}", flush=True)
            for command in commands.strip().splitlines():
                done = subprocess.run(
                    command.split(), cwd=home, env=environment, capture_output=True, text=True, timeout=600
                )
                said = NOISE.sub("", done.stdout + done.stderr).replace(str(home), "~").strip()
                print(f"$ {command}\n{said}\n", flush=True)
        commits = [sha[:12] for sha in hub.commits("user/digits")]
        print(f"# commits on the Hub: {', '.join(commits)}; files: {', '.join(sorted(hub.files('user/digits')))}")


if __name__ == "__main__":
    main()
