"""Hostile presets and checkpoints: 300, or one of each kind; `python tools/fuzz.py --cases 5000` has more."""

import sys
import textwrap

import fuzzing
import keras
import pytest

# Little of what reads a file depends on the backend: on the others than TensorFlow, each kind of mutation once.
CASES = 300 if keras.backend.backend() == "tensorflow" else len(fuzzing.MUTATIONS)


def told(outcome):
    return f"case {outcome.number} ({outcome.kind}, {outcome.mode}, {outcome.action}): {outcome.violations}"


@pytest.mark.backend_independent
def test_hostile_files_are_read_or_refused_and_nothing_else():
    outcomes = list(fuzzing.run(CASES, seed=0, batch=CASES))
    assert [told(outcome) for outcome in outcomes if outcome.violations] == []
    assert {(o.target, o.kind) for o in outcomes} == set(fuzzing.MUTATIONS)
    assert {(o.result, o.mode) for o in outcomes} >= {(r, m) for r in ("read", "refused") for m in ("stale", "signed")}


READERS = {  # readers that break a rule -> what is said of them
    "raise TypeError('x')": "TypeError of",
    "__import__('json').loads('{')": "JSONDecodeError of",
    "raise ValueError('x')": "not a ValueError of ours",
    "open(box.outside / 'secret.json').close()": "touched what is none of its business: open",
    "__import__('h5py').File(box.outside / 'weights.h5').close()": "'weights.h5' beside the folder",
    "open('/etc/hostname').close()": "open '/etc/hostname'",
    "os.mkdir(box.outside / 'owned')": "os.mkdir",
    "(box.folder / 'more').write_text('x')": "it changed files",
    "os.system('true')": "os.system",
    "__import__(fuzzing.sandbox.PAYLOAD)": f"import ('{fuzzing.sandbox.PAYLOAD}'",
    "pickle.loads(b'cos\\ngetcwd\\n.')": "pickle.find_class",
    "socket.create_connection(('127.0.0.1', 9))": "socket.connect",
    "bytearray(600 << 20)": " MiB",
    "while True: pass": "it took more than 2 s",
    "refuse('x' * 10_000)": "the message has 10,",
    "refuse('nothing of note')": "names neither a file nor an argument",
    "refuse('`x` ' + chr(0xd800))": "cannot be printed",
    "os.kill(os.getpid(), 11)": "the process died with status -11",
}


@pytest.fixture
def trial(tmp_path):
    """A worker whose readers break the rules, one in each case."""
    script = tmp_path / "worker.py"
    lines = [f"def reader_{i}(box):\n    {reader}\n" for i, reader in enumerate(READERS)]
    head = f"""
        import os, pickle, socket, sys
        sys.path.insert(0, {str(fuzzing.ROOT / "tests")!r})
        import fuzzing
        from keras_issl.zoo import strict
        fuzzing.SECONDS = 2

        def refuse(text):
            strict.find_file(fuzzing.Path("nowhere"), "x", text)
    """
    calls = f"""
        actions = [globals()[f"reader_{{i}}"] for i in range({len(READERS)})]
        fuzzing.worker(*sys.argv[1:4], actions=actions)
    """
    path = f"import sys\nsys.path.insert(0, {str(fuzzing.ROOT)!r})\n"
    script.write_text(path + textwrap.dedent(head) + "\n".join(lines) + textwrap.dedent(calls))
    return [sys.executable, str(script)]


@pytest.mark.backend_independent
def test_every_rule_is_noticed_when_it_is_broken(trial):
    outcomes = list(fuzzing.run(len(READERS), seed=0, command=trial))
    for outcome, (reader, words) in zip(outcomes, READERS.items(), strict=True):
        if "h5py" not in reader or sys.platform == "linux":  # elsewhere nobody tells what a C library opens
            assert any(words in violation for violation in outcome.violations), (reader, told(outcome))


@pytest.mark.backend_independent
def test_a_case_is_always_the_same():
    plans = [[fuzzing.plan(3, number)[:2] for number in range(100)] for _ in range(2)]
    assert plans[0] == plans[1]
    draws = [fuzzing.plan(3, 7)[2].random(4).tolist() for _ in range(2)]
    assert draws[0] == draws[1]
