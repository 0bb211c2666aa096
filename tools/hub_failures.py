"""What users see when the Hugging Face Hub, the network or the disk fails: one Markdown table, every row of it played.

    python tools/hub_failures.py
    python tools/hub_failures.py --only offline

Each row is a case of `tests/hub_cases.py`: real clients with fresh caches, against a stand-in for the Hub on this
machine. The seconds are those of the call, without the imports. In the messages, the stand-in's addresses and paths are
replaced by those that a user would see. The exit code is 1 if a message is not what it should be, or comes too late.
"""

import argparse
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import hub_cases  # noqa: E402
from hub_server import HubServer  # noqa: E402

SHOWN = {"HF_ENDPOINT": "https://huggingface.co", "HF_HOME": "~/.cache/huggingface"}


def as_seen(stage, message):
    """The message with a user's addresses and paths."""
    message = message.replace(str(stage.home / "preset"), "my_preset")
    for variable, text in SHOWN.items():
        message = message.replace(stage.environment[variable], text)
    for slash in ("/", "--"):
        message = message.replace(stage.repo.replace("/", slash), f"me{slash}my_preset")
    return re.sub(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1…", message).replace("|", "\\|")


def play_all(cases, threads=4):
    """Plays the cases; yields a row of the table, and what is wrong with it, for each."""
    with tempfile.TemporaryDirectory() as folder, HubServer(Path(folder) / "hub") as hub:
        clients, folder = hub_cases.Clients(), Path(folder)
        made = clients.run(hub.environment(folder / "maker"), hub_cases.MAKE.format(folder=str(folder / "preset")))
        if made.kinds:
            raise RuntimeError(f"The preset cannot be made: {made.message}")
        files = hub_cases.read_folder(folder / "preset")

        def play(number, case):
            stage, outcome = hub_cases.play(case, hub, clients, hub_cases.variant(files, number), folder / "homes")
            wrong = hub_cases.misbehaviour(case, stage, outcome)
            seen = f"{outcome.error}: {as_seen(stage, outcome.message)}" if outcome.kinds else str(outcome.value)
            return f"| {case.situation} | {seen} | {outcome.seconds:.1f} |", wrong

        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(play, range(1000, 1000 + len(cases)), cases)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="play the situations that hold this text")
    only = parser.parse_args().only.lower()
    cases = [case for case in hub_cases.LOADING + hub_cases.PUBLISHING if only in case.situation.lower()]
    left_out = [case for case in cases if case.namespaces and not hub_cases.has_namespaces()]
    problems = []
    print("| situation | what the user sees | seconds |\n|---|---|---:|")
    for row, wrong in play_all([case for case in cases if case not in left_out]):
        print(row, flush=True)
        if wrong:
            problems.append(f"{row}\n    {'; '.join(wrong)}")
    for case in left_out:
        print(f"not played, as it takes user namespaces: {case.situation}", file=sys.stderr)
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
