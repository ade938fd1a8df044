"""What may stand on the command line: every command with its arguments, help and example."""

from __future__ import annotations

import argparse
import csv
from typing import Any, Final

from ..version import __version__
from .arguments import Command, add, add_group, count, seconds_of
from .task_parser import add_tasks, add_worker

__all__ = ["ATTRIBUTES", "make_parser"]

_EXIT_CODES: Final = (
    "Exit codes: 0 done; 1 it went wrong, a check has findings, or tasks have failed; 2 the "
    "command line is wrong, a filter or query included; 124 the time to wait is over; 130 it was "
    "interrupted; 143 it was told to end."
)
_STATUSES: Final = (
    "SCHEDULED", "RUNNING", "PAUSED", "FINISHED", "FAILED", "LOST", "BROKEN",
)  # fmt: skip
ATTRIBUTES: Final = (
    "run_id", "run_name", "experiment", "experiment_id", "status", "start_time", "end_time",
    "duration", "parent_id",
)  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has ``call``, the module and the function to call."""
    parser = argparse.ArgumentParser(
        prog="qwf",
        description="Qlib's workflow management on nothing but a directory.",
        epilog=f"{_EXIT_CODES} Each command explains itself: qwf rec list --help.",
    )
    parser.add_argument("--version", action="version", version=f"qwf {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Command
    )
    _add_demo(commands)
    _add_check(commands)
    _add_doctor(commands)
    _add_experiments(add_group(commands, "exp", "experiments: list, show, delete, restore"))
    recorders = add_group(
        commands, "rec", "recorders: list, search, show, compare, tag, delete, restore, ..."
    )
    _add_listings(recorders)
    _add_details(recorders)
    _add_changes(recorders)
    _add_gc(commands)
    add_worker(commands)
    add_tasks(add_group(commands, "tasks", "task pools: list, show, add, reset, wait, ..."))
    return parser


def _add_demo(commands: Any) -> None:
    add(
        commands,
        "demo",
        "demo.run_demo",
        "train rolling models on real prices and show their signals",
        more="Trains two model configurations over rolling windows of real daily closes of "
        "20 S&P 500 companies, keeps every run in a store, and prints the recorders, their IC and "
        "the ensembled signals. Needs no network; can be run again on the same store.",
        example="qwf demo --uri my_store",
        tables="",
    )


def _add_check(commands: Any) -> None:
    check = add(
        commands,
        "check",
        "check.run_check",
        "look for damage in a store, and repair what can be repaired",
        more="Reads every file of a store and prints what is wrong. Exit code 1 when "
        "something is left that is wrong. Nothing is changed without --repair, and nothing is "
        "deleted with it: what is damaged, and files among the artifacts that no recorder knows, "
        "are moved to the store's quarantine/. What is not of qwf is told and left alone.",
        example="qwf check my_store --repair",
        tables="json",
    )
    check.add_argument("store", nargs="?", help="the same as --uri")
    check.add_argument("--repair", action="store_true", help="set right what can be")


def _add_doctor(commands: Any) -> None:
    doctor = add(
        commands,
        "doctor",
        "doctor.run_doctor",
        "try out whether a store and a task pool may live in a directory",
        more="Tries what qwf relies on (creating, linking, renaming, locking, syncing, clocks) "
        "with several processes, in a directory of its own that it removes. With --meet, run at "
        "the same time on two hosts that share the directory, also between them. Exit code 0 when "
        "both may live there, 1 when one may not, or only with a restriction. What is wrong for "
        "moments only, such as a server that loses answers, may escape a test of seconds.",
        example="qwf doctor /mnt/share/qwf --meet",
        uri=False,
        tables="json",
    )
    doctor.add_argument("path", metavar="PATH", help="an existing directory")
    doctor.add_argument("--meet", action="store_true", help="also between two hosts")
    doctor.add_argument(
        "--wait",
        type=seconds_of,
        default=120.0,
        metavar="AGE",
        help="how long --meet waits for the other, such as 90s, 10m; default: 2m",
    )


# --- experiments -----------------------------------------------------------------------------


def _add_experiments(commands: Any) -> None:
    add(
        commands,
        "list",
        "experiments.list_experiments",
        "list the experiments, the one that was used last first",
        example="qwf exp list",
    )
    show = add(
        commands,
        "show",
        "experiments.show_experiment",
        "show one experiment: its recorders by status, its metrics, its newest recorders",
        example="qwf exp show 'demo rolling'",
        tables="json",
    )
    delete = add(
        commands,
        "delete",
        "experiments.delete_experiment",
        "move an experiment to the store's trash",
        more="Nothing is asked, because nothing is lost: qwf exp restore brings it back until "
        "qwf gc empties the trash. Experiments with running or online recorders are refused.",
        example="qwf exp delete 'first steps'",
        tables="",
    )
    restore = add(
        commands,
        "restore",
        "experiments.restore_experiment",
        "bring an experiment back from the trash",
        more="Of several that had the name, the one that was deleted last.",
        example="qwf exp restore 'first steps'",
        tables="",
    )
    for command in (show, delete, restore):
        command.add_argument("name", metavar="NAME", help="the experiment")


# --- recorders: many -------------------------------------------------------------------------


def _add_listings(commands: Any) -> None:
    listing = add(
        commands,
        "list",
        "listings.list_recorders",
        "list recorders, the one that was started last first",
        more="Shows the first few metrics, or the columns that are named. A recorder whose process "
        "has died is LOST, one whose file is damaged is BROKEN.",
        example="qwf rec list 'demo rolling' --status FINISHED --columns metrics.IC,params.lr",
    )
    search = add(
        commands,
        "search",
        "listings.list_recorders",
        "list the recorders that a filter lets through",
        more="A filter compares metrics.NAME, params.NAME, tags.NAME or attributes (run_id, "
        "run_name, status, start_time, ...) by = != > >= < <= LIKE ILIKE IN IS NULL, joined by "
        "AND, OR, NOT and parentheses. Texts stand in single or double quotes, names with blanks "
        "in backticks. A mark of qwf rec tag is found by tags.mark.LABEL IS NOT NULL.",
        example="qwf rec search \"metrics.IC > 0.03 AND params.model = 'ridge'\"",
    )
    search.add_argument("filter", metavar="FILTER", help="which recorders")
    listing.add_argument("--filter", default="", help="which recorders; see qwf rec search --help")
    for command in (listing, search):
        command.add_argument(
            "experiments", nargs="*", metavar="EXPERIMENT", help="only of these; default: of all"
        )
        command.add_argument(
            "--status",
            action="append",
            type=str.upper,
            choices=_STATUSES,
            help="only with this status; may be given again",
        )
        command.add_argument("--deleted", action="store_true", help="those in the trash")
        command.add_argument(
            "--order-by",
            action="append",
            metavar="KEY",
            help="such as 'metrics.IC DESC'; may be given again",
        )
        command.add_argument(
            "--max",
            type=count,
            metavar="N",
            help="at most so many, 0 for all; default: 50, with --json and --csv all",
        )
        command.add_argument(
            "--columns",
            type=_columns,
            action="extend",
            metavar="KEY,...",
            help="such as metrics.IC,params.lr,tags.note, instead of the first metrics",
        )


def _add_details(commands: Any) -> None:
    show = add(
        commands,
        "show",
        "details.show_recorder",
        "show everything about one recorder",
        more="Params, metrics, tags, artifacts, who ran it where, parent and children.",
        example="qwf rec show 1f9c2ab4",
        tables="json",
    )
    metrics = add(
        commands,
        "metrics",
        "details.show_metrics",
        "show the history of a recorder's metrics",
        example="qwf rec metrics 1f9c2ab4 loss --csv > loss.csv",
    )
    params = add(
        commands,
        "params",
        "details.show_params",
        "show the params of a recorder",
        example="qwf rec params 1f9c2ab4",
    )
    artifacts = add(
        commands,
        "artifacts",
        "details.show_artifacts",
        "list the artifacts of a recorder, or copy one out of the store",
        example="qwf rec artifacts 1f9c2ab4 --get pred.pkl --to out",
    )
    for command in (show, metrics, params, artifacts):
        _add_identity(command)
    metrics.add_argument("keys", nargs="*", metavar="KEY", help="only these; default: all")
    metrics.add_argument("--last", action="store_true", help="only the last value of each")
    artifacts.add_argument("--get", metavar="NAME", help="copy this one and print its path")
    artifacts.add_argument("--to", metavar="DIR", help="where --get copies it; default: here")
    compare = add(
        commands,
        "compare",
        "comparison.compare",
        "show in what recorders differ: params, metrics, tags, attributes",
        more="Recorders are named by ids, or chosen by --filter and --experiment.",
        example="qwf rec compare 1f9c2ab4 77e01d3c",
    )
    _add_identity(compare, nargs="*")
    compare.add_argument("--filter", default="", help="which recorders; see qwf rec search --help")
    compare.add_argument(
        "--experiment", action="append", metavar="NAME", help="all of it; may be given again"
    )
    compare.add_argument("--all", action="store_true", help="also what is the same in all")
    compare.add_argument("--transpose", action="store_true", help="one row per recorder")


# --- recorders: changes ----------------------------------------------------------------------


def _add_changes(commands: Any) -> None:
    tag = add(
        commands,
        "tag",
        "changes.tag_recorder",
        "set and delete tags of a recorder, and show them",
        more="A note is the tag note. A mark is a tag mark.LABEL with the value 1; recorders that "
        "have it are found by tags.mark.LABEL IS NOT NULL.",
        example="qwf rec tag 1f9c2ab4 reviewed=yes --note 'the good one' --mark best",
    )
    _add_identity(tag)
    tag.add_argument("tags", nargs="*", type=_tag, metavar="KEY=VALUE", help="tags to set")
    tag.add_argument("--delete", action="append", default=[], metavar="KEY", help="a tag to delete")
    tag.add_argument("--note", metavar="TEXT", help="set the note")
    tag.add_argument("--mark", action="append", default=[], metavar="LABEL", help="set a mark")
    delete = add(
        commands,
        "delete",
        "changes.delete_recorders",
        "move recorders to the store's trash, with their children",
        more="All are looked at before the first is moved; running and online ones are refused. "
        "qwf rec restore brings them back until qwf gc empties the trash.",
        example="qwf rec delete 1f9c2ab4 77e01d3c",
        tables="",
    )
    restore = add(
        commands,
        "restore",
        "changes.restore_recorders",
        "bring recorders back from the trash",
        example="qwf rec restore 20260102-093000-000000-1f9c2ab4",
        tables="",
    )
    for command in (delete, restore):
        _add_identity(command, nargs="+")


def _add_gc(commands: Any) -> None:
    gc = add(
        commands,
        "gc",
        "trash.collect",
        "remove for good what is in the trash",
        more="This cannot be undone.",
        example="qwf gc --older-than 30d --dry-run",
    )
    gc.add_argument(
        "--older-than",
        required=True,
        type=seconds_of,
        metavar="AGE",
        help="only what was deleted longer ago, such as 30d, 12h, 15m, 90s, 2w; 0s is all",
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")


# --- arguments -------------------------------------------------------------------------------


def _add_identity(command: argparse.ArgumentParser, nargs: str | None = None) -> None:
    command.add_argument(
        "ids" if nargs else "id",
        nargs=nargs,
        metavar="ID",
        help="a recorder: its id, or a beginning or an ending that only it has",
    )


def _columns(text: str) -> list[tuple[str, str]]:
    """Return family and key of each column; a key with a comma stands in double quotes."""
    (names,) = csv.reader([text])
    return [_column(name.strip()) for name in names]


def _column(name: str) -> tuple[str, str]:
    family, dot, key = name.partition(".")
    if not dot:
        family, key = "attributes", name
    known = family in ("metrics", "params", "tags") and key
    if not known and (family != "attributes" or key not in ATTRIBUTES):
        raise argparse.ArgumentTypeError(
            f"{name!r} is no column; expected metrics.NAME, params.NAME, tags.NAME, or one of "
            f"{', '.join(ATTRIBUTES)}"
        )
    return family, key


def _tag(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is no tag; expected KEY=VALUE")
    return key, value
