"""The command line: parses, calls the library, prints."""

import argparse
import contextlib
import os
import re
import sys
import warnings

from keras_issl.cli import evaluate, presets, pretrain, runs
from keras_issl.cli.shared import say


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-issl",
        description="Self-supervised pre-training on your images (DISSL, CISSL and eight objectives beside them), and "
        "probes and diagnoses of what was learned.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (pretrain, runs, evaluate, presets):
        module.add(commands)
    return parser


@contextlib.contextmanager
def _plain_warnings():
    """Shows warnings that are meant for users as one line, without the place in the code."""
    usual = warnings.formatwarning

    def line(message, category, *place, **rest):
        return f"keras-issl: {message}\n" if category is UserWarning else usual(message, category, *place, **rest)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _plain(error):
    """The message, without codes for terminals and without the page on arguments that Keras puts around one."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    around = r"Exception encountered when calling .*?\.\n\n(.*?)\n\nArguments received by .*"
    return re.sub(around, r"\1", text, flags=re.DOTALL)


def main(argv=None):
    """Runs `keras-issl`; errors of the user's making are one line on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    args.command_line = sys.argv[1:] if argv is None else list(argv)
    try:
        from keras_issl import _backend

        say(f"backend: {_backend.NAME} ({_backend.REASON})")
        with _plain_warnings():
            args.run(args)
    except (ValueError, ImportError, FloatingPointError, OSError, MemoryError) as error:
        if os.environ.get("KERAS_ISSL_TRACEBACK"):
            raise
        print(f"keras-issl: {_plain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("keras-issl: interrupted", file=sys.stderr)
        return 130
    return 0
