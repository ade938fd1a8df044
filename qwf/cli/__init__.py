"""The command line ``qwf``: parse, call one function, print.

Exit codes: 0 done, 1 it went wrong, a check has findings, or tasks have failed, 2 the command line
is wrong, 124 the time to wait is over (as of ``timeout``), 130 it was interrupted, 143 it was told
to end.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import CommandLineError, FilterError, PoolTimeoutError, QueryError, QwfError
from .parser import make_parser
from .tables import printable

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
    options = make_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks must not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    module, function = options.call
    try:
        code: int = getattr(import_module(f".{module}", __name__), function)(options)
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
        for line in f"qwf: {error}".split("\n"):
            print(printable(line), file=sys.stderr)
        return _code_of(error)
    return code


def _code_of(error: Exception) -> int:
    if isinstance(error, (CommandLineError, FilterError, QueryError)):
        return 2
    return 124 if isinstance(error, PoolTimeoutError) else 1
