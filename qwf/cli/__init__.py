"""The command line ``qwf``: parse, call one function, print.

Exit codes: 0 done, 1 it went wrong or a check has findings, 2 the command line is wrong, 130 it was
interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..errors import QwfError
from ..version import __version__

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Examples
    --------
    >>> main(["--version"])
    Traceback (most recent call last):
        ...
    SystemExit: 0
    """
    options = _parser().parse_args(arguments)
    try:
        code = _run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("qwf: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (QwfError, OSError) as error:
        if options.debug:
            raise
        print(f"qwf: {error}", file=sys.stderr)
        return 1
    return code


def _run(options: argparse.Namespace) -> int:
    if options.command == "demo":
        from .demo import run_demo

        run_demo(options.uri)
        return 0
    from .check import run_check

    return run_check(options.store, repair=options.repair, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwf", description="Qlib's workflow management on nothing but a directory."
    )
    parser.add_argument("--version", action="version", version=f"qwf {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train rolling models on real prices and show their signals",
        description="Trains two model configurations over rolling windows of real daily closes of "
        "20 S&P 500 companies, keeps every run in a store, and prints the recorders, their IC and "
        "the ensembled signals. Needs no network; can be run again on the same store.",
    )
    demo.add_argument(
        "--uri", default=None, metavar="DIR", help="the store; default: QWF_URI, else ./qwf_store"
    )

    check = commands.add_parser(
        "check",
        help="look for damage in a store, and repair what can be repaired",
        description="Reads every file of a store and prints what is wrong. Exit code 1 when "
        "something is left that is wrong. Nothing is changed without --repair, and nothing is "
        "deleted with it: damaged and unknown files are moved to the store's quarantine/.",
    )
    check.add_argument("store", nargs="?", default=None, help="default: QWF_URI, else ./qwf_store")
    check.add_argument("--repair", action="store_true", help="set right what can be")
    check.add_argument("--json", action="store_true", help="print one JSON list")
    return parser
