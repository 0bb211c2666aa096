"""Runs a client of the Hub in a process of its own, because huggingface_hub reads its environment once, at import."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

PRELUDE = """
import json, sys, time, traceback

outcome, clock = {}, [time.perf_counter()]

def report(value):
    outcome["value"] = value

def start():
    clock[0] = time.perf_counter()

def save():
    with open(sys.argv[1], "w") as file:
        json.dump(outcome, file)

try:
    exec(compile(sys.argv[2], "<client>", "exec"), {"__name__": "__main__", "report": report, "start": start})
except Exception as error:
    seconds = time.perf_counter() - clock[0]
    outcome["error"] = [type(error).__name__, str(error), seconds]
    outcome["kinds"] = [kind.__name__ for kind in type(error).__mro__]
    traceback.print_exc()
    sys.exit(1)
finally:
    save()
"""


@dataclasses.dataclass
class Result:
    """How a client ended."""

    returncode: int
    stdout: str
    stderr: str
    value: Any = None  # what the code handed to `report`
    error: tuple | None = None  # (type name, message, seconds since `start()` or since the code began)
    kinds: tuple = ()  # the names of the error's class and of all its bases


def run(code, environment, timeout=120):
    """Runs Python `code` in a new process with this environment and nothing else.

    The code may call `report(value)` with something that JSON can hold, and `start()`, usually after its imports, to
    set the clock that times an error to zero.

    ```python
    result = run("import huggingface_hub as hub; start(); report(hub.whoami()['name'])", environment)
    ```

    Returns:
        A `Result`.
    """
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder, "outcome.json")
        command = [sys.executable, "-W", "ignore", "-c", PRELUDE, str(outcome), textwrap.dedent(code)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=folder)
        told = json.loads(outcome.read_text()) if outcome.exists() else {}
    error, kinds = told.get("error"), told.get("kinds", ())
    result = Result(process.returncode, process.stdout, process.stderr, told.get("value"))
    return dataclasses.replace(result, error=error and tuple(error), kinds=tuple(kinds))
