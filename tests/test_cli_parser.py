"""What may stand on the command line, and that help, examples and README say so."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwf.cli.parser import make_parser

README = (Path(__file__).parent.parent / "README.md").read_text()


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from commands_of(child)
            return
    yield parser


COMMANDS = {command.prog: command for command in commands_of(make_parser())}


def lines_of_readme() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [part for block in blocks for line in block.splitlines() for part in line.split("&& ")]
    return [line for line in lines if line.startswith("qwf ")]


def parse(line: str) -> argparse.Namespace:
    words = shlex.split(line, comments=True)
    return make_parser().parse_args(words[1 : words.index(">") if ">" in words else None])


def test_there_are_all_commands() -> None:
    assert set(COMMANDS) >= {
        *(f"qwf {one}" for one in "demo check gc".split()),
        *(f"qwf exp {one}" for one in "list show delete restore".split()),
        *(
            f"qwf rec {one}"
            for one in "list search show metrics params artifacts compare tag delete "
            "restore".split()
        ),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_gives_an_example_that_parses(name: str) -> None:
    command = COMMANDS[name]
    assert command.description
    (example,) = re.findall(r"^  (qwf .*)$", command.epilog or "", flags=re.MULTILINE)
    assert example.startswith(name)
    assert callable_of(parse(example).call)


def callable_of(call: tuple[str, str]) -> bool:
    module, function = call
    return callable(getattr(__import__(f"qwf.cli.{module}", fromlist=[function]), function))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_a_command_is_explained(name: str) -> None:
    for action in COMMANDS[name]._actions:
        assert action.help, f"{name}: {action.dest}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_in_the_readme(name: str) -> None:
    assert any(line.startswith(name) for line in lines_of_readme()), name


def test_every_command_line_of_the_readme_parses() -> None:
    assert lines_of_readme()
    for line in lines_of_readme():
        parse(line)


@pytest.mark.parametrize(
    "words",
    [
        "rec list --uri s a b --status failed --max 3",
        "rec list a --uri s --status FAILED b --max 3",
        "rec list a b --max 3 --status Failed --uri s",
    ],
)
def test_options_may_stand_before_between_and_after(words: str) -> None:
    options = make_parser().parse_args(words.split())
    assert options.experiments == ["a", "b"]
    assert (options.uri, options.status, options.max) == ("s", ["FAILED"], 3)


@pytest.mark.parametrize(
    "words",
    ["rec tag ID k=v --note n l=w --delete d", "rec tag --delete d ID --note n k=v l=w"],
)
def test_tags_may_stand_around_options(words: str) -> None:
    options = make_parser().parse_args(words.split())
    assert (options.id, options.tags) == ("ID", [("k", "v"), ("l", "w")])
    assert (options.note, options.delete) == ("n", ["d"])


def test_after_two_dashes_a_name_may_begin_with_one() -> None:
    options = make_parser().parse_args(["exp", "delete", "--uri", "s", "--", "-x"])
    assert (options.name, options.uri) == ("-x", "s")


@pytest.mark.parametrize("words", ["--debug rec list", "rec list --debug", "rec list a --debug"])
def test_debug_may_stand_anywhere(words: str) -> None:
    assert make_parser().parse_args(words.split()).debug


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "required: COMMAND"),
        ("rec", "required: COMMAND"),
        ("rec lst", "invalid choice"),
        ("rec show", "required: ID"),
        ("rec delete", "required: ID"),
        ("rec search", "required: FILTER"),
        ("rec list --status DONE", "invalid choice"),
        ("rec list --max -1", "is no count"),
        ("rec list --max ten", "is no count"),
        ("rec list --columns metric.IC", "'metric.IC' is no column"),
        ("rec list --columns metrics.", "'metrics.' is no column"),
        ("rec list --columns IC", "'IC' is no column"),
        ("rec list --json --csv", "not allowed with"),
        ("rec list --nonsense", "unrecognized arguments: --nonsense"),
        ("rec tag ID note", "'note' is no tag"),
        ("rec tag ID =x", "'=x' is no tag"),
        ("exp delete a b", "unrecognized arguments: b"),
        ("gc", "required: --older-than"),
        ("gc --older-than 30", "'30' is no age"),
        ("gc --older-than -1d", "is no age"),
        ("gc --older-than 1y", "is no age"),
        ("gc --older-than nan", "is no age"),
        ("check --repair a b", "unrecognized arguments: b"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_says_what_is_wrong(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(words.split())
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert said in err.replace("expected one argument", "is no age")
    assert out == ""


def test_columns_may_have_commas_in_quotes_and_be_given_again() -> None:
    words = ["rec", "list", "--columns", 'metrics.IC,"params.a,b"', "--columns", "end_time"]
    assert make_parser().parse_args(words).columns == [
        ("metrics", "IC"),
        ("params", "a,b"),
        ("attributes", "end_time"),
    ]


def test_a_value_may_hold_the_sign_that_parts_it_from_its_key() -> None:
    options = make_parser().parse_args(["rec", "tag", "ID", "query=a=b", "empty="])
    assert options.tags == [("query", "a=b"), ("empty", "")]


@pytest.mark.parametrize("words", [["--help"], ["rec", "--help"], ["rec", "list", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys, atexit; from qwf.cli import main; heavy = 'numpy pandas pyarrow filelock'\n"
        "atexit.register(lambda: print([name for name in heavy.split() if name in sys.modules]))\n"
        f"main({words})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
