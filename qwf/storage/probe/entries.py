"""What one process can find out about names: creating, linking, renaming, spelling; and space."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ...types import Json
from .. import fsio
from .files import new_file
from .findings import Finding, Grade, Level, why

__all__ = [
    "probe_directories",
    "probe_exclusive_create",
    "probe_links",
    "probe_names",
    "probe_permissions",
    "probe_rename",
    "probe_space",
]

# The longest names that qwf makes: of a run or artifact that a user named, and of a task.
_LONGEST: Final = 255
_USERS: Final = 200
_TASKS: Final = 100

# Composed characters (NFC), as qwf writes them. Some systems give them back decomposed.
_UNICODE: Final = "\u6caa\u6df1300 caf\u00e9 \u00fc"

_FEW_BYTES: Final = 100_000_000
_FEW_FILES: Final = 10_000


def _forbidden(name: str, sentence: str, because: str, grade: Grade = Grade.WRONG) -> Finding:
    return Finding(
        name=name,
        grade=grade,
        sentence=f"{sentence}.",
        store=Level.FORBIDDEN,
        pool=Level.FORBIDDEN,
        because=because,
    )


def probe_permissions(directory: Path) -> Iterator[Finding]:
    """Write a file, and look who else may."""
    made = fsio.system().stat(new_file(directory / "file", b"x"))
    above = fsio.system().stat(directory.parent.parent)
    shared = bool(above.st_mode & stat.S_IWGRP)
    facts: dict[str, Json] = {
        "mode": stat.filemode(made.st_mode),
        "uid": made.st_uid,
        "gid": made.st_gid,
        "directory_mode": stat.filemode(above.st_mode),
    }
    said = (
        f"files can be written; new ones are {facts['mode']}, of user {made.st_uid} and group "
        f"{made.st_gid}"
    )
    if shared and not made.st_mode & stat.S_IWGRP:
        yield Finding(
            name="permissions",
            grade=Grade.MISSING,
            sentence=f"{said}. The directory is for a group ({facts['directory_mode']}), but "
            "others of it could not change what you make: set umask 002.",
            store=Level.TOLD,
            pool=Level.TOLD,
            because="others of the group cannot change what you make (umask 002 lets them)",
            facts=facts,
        )
    elif shared and made.st_gid != above.st_gid:
        yield Finding(
            name="permissions",
            grade=Grade.MISSING,
            sentence=f"{said}. The directory is for group {above.st_gid}, which new files do not "
            "get: chmod g+s it.",
            store=Level.TOLD,
            pool=Level.TOLD,
            because="new files do not get the group of the directory (chmod g+s does that)",
            facts=facts,
        )
    else:
        yield Finding(name="permissions", sentence=f"{said}.", facts=facts)


def probe_exclusive_create(directory: Path) -> Iterator[Finding]:
    """Create a file that is there already."""
    name = "exclusive create"
    new_file(directory / "file", b"first")
    try:
        new_file(directory / "file", b"second")
    except FileExistsError:
        yield Finding(name=name, sentence="a file that is there already is not created again.")
        return
    yield _not_exclusive(name, "a file that is there already can be created again (O_EXCL)")


def _not_exclusive(name: str, sentence: str) -> Finding:
    return Finding(
        name=name,
        grade=Grade.WRONG,
        sentence=f"{sentence}, so that two processes can take one name.",
        store=Level.RESTRICTED,
        pool=Level.FORBIDDEN,
        because="creating a file excludes nobody (O_EXCL), so only one process at a time may write",
    )


def probe_links(directory: Path) -> Iterator[Finding]:
    """Give a file a second name, and try one that is taken."""
    name = "hard link"
    because = "qwf publishes files by hard links, which never replace another"
    link = fsio.system().link
    one, two, other = (
        new_file(directory / "one", b"1"),
        directory / "two",
        new_file(directory / "3", b"3"),
    )
    try:
        link(one, two)
    except OSError as error:
        said = why(error)
        yield _forbidden(name, f"a file cannot get a second name: {said}", because, Grade.MISSING)
        return
    if not fsio.is_same_file(one, two) or fsio.count_names(one) != 2:
        yield _forbidden(name, "the second name of a file is told to be another file", because)
        return
    try:
        link(other, two)
    except FileExistsError:
        fsio.remove_file(one)
        if fsio.read_bytes(two) == b"1" and fsio.count_names(two) == 1:
            yield Finding(name=name, sentence="a file can have two names; a taken name is refused.")
            return
    yield _forbidden(name, "a link replaces or loses a file that has the name already", because)


def probe_rename(directory: Path) -> Iterator[Finding]:
    """Replace a file, move one to another directory, and move one that is gone."""
    because = "a rename does not do what it says, and every change that qwf makes is one"
    answers = []
    for sentence, try_it in (
        ("replacing a file leaves the old one, or a second copy", _replaces),
        ("a file that is moved to another directory is not there, or in both", _moves),
        ("moving a file that is gone is no error, so both of two movers believe in it", _misses),
    ):
        part = directory / try_it.__name__.strip("_")
        fsio.system().mkdir(part)
        done, answer = try_it(part)
        if not done:
            yield _forbidden("rename", f"{sentence}{f' ({answer})' if answer else ''}", because)
            return
        answers.append(answer)
    said = ", ".join(filter(None, answers))
    yield Finding(
        name="rename",
        grade=Grade.SLOW if said else Grade.OK,
        sentence="a rename replaces a file whole, moves between directories, and fails when the "
        f"file is gone{f'; but the server said that it had failed ({said})' if said else ''}.",
    )


def _answer(call: Callable[[Path, Path], None], source: Path, target: Path) -> str:
    """Make a call and return its error; whether it has happened is looked at afterwards."""
    try:
        call(source, target)
    except OSError as error:
        return why(error)
    return ""


def _replaces(directory: Path) -> tuple[bool, str]:
    old, new = new_file(directory / "old", b"old"), new_file(directory / "new", b"new")
    inode = fsio.stamp(new)[0]
    answer = _answer(fsio.system().replace, new, old)
    done = fsio.read_bytes(old) == b"new" and fsio.stamp(old)[0] == inode
    return done and fsio.list_names(directory) == ["old"], answer


def _moves(directory: Path) -> tuple[bool, str]:
    source, target = directory / "source", directory / "target"
    fsio.system().mkdir(source)
    fsio.system().mkdir(target)
    inode = fsio.stamp(new_file(source / "a", b"a"))[0]
    answer = _answer(fsio.system().rename, source / "a", target / "b")
    done = fsio.list_names(target) == ["b"] and fsio.list_names(source) == []
    return done and fsio.stamp(target / "b")[0] == inode, answer


def _misses(directory: Path) -> tuple[bool, str]:
    try:
        fsio.system().rename(directory / "gone", directory / "other")
    except FileNotFoundError:
        return True, ""
    return False, ""


def probe_directories(directory: Path) -> Iterator[Finding]:
    """Move a directory, also to a name that is taken."""
    name, system = "directories", fsio.system()
    for made in ("one", "two"):
        system.mkdir(directory / made)
        new_file(directory / made / "file", made.encode())
    try:
        system.rename(directory / "one", directory / "two")
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    else:
        yield Finding(
            name=name,
            grade=Grade.WRONG,
            sentence="a directory can be moved over one that has files.",
            store=Level.FORBIDDEN,
            because="a directory that is moved over another replaces it",
        )
        return
    system.rename(directory / "one", directory / "three")
    if sorted(fsio.list_names(directory)) != ["three", "two"]:
        yield _forbidden(name, "a directory that was moved is not there", "directories do not move")
        return
    yield Finding(name=name, sentence="a directory moves whole, and never over one that has files.")


# --- spelling --------------------------------------------------------------------------------


def probe_names(directory: Path) -> Iterator[Finding]:
    """Create files with long, foreign and similar names."""
    longest = next(
        (size for size in (_LONGEST, _USERS, _TASKS) if _can_be(directory, "x" * size)), 0
    )
    unicode, cases = _can_be(directory, _UNICODE), _keeps_cases(directory)
    facts: dict[str, Json] = {
        "longest_name_bytes": longest,
        "unicode": unicode,
        "case_sensitive": cases,
    }
    wrong = list(_name_troubles(longest, unicode, cases))
    if not wrong:
        yield Finding(
            name="names",
            sentence="long names, names in all scripts, and names that differ by case are kept.",
            facts=facts,
        )
        return
    yield Finding(
        name="names",
        grade=Grade.MISSING,
        sentence=f"{'; '.join(wrong)}.",
        store=Level.FORBIDDEN if longest < _TASKS else Level.RESTRICTED,
        pool=Level.FORBIDDEN if longest < _TASKS else Level.TOLD,
        because="; ".join(wrong),
        facts=facts,
    )


def _name_troubles(longest: int, unicode: bool, cases: bool) -> Iterator[str]:
    if longest < _USERS:
        size = _USERS if longest else _TASKS
        yield f"names of {size} bytes are refused (experiments with long names)"
    if not unicode:
        yield "names with other than English letters are refused or changed"
    if not cases:
        yield "names that differ only by case (Model, model) are one"


def _can_be(directory: Path, name: str) -> bool:
    """Whether a name is accepted and given back as it is."""
    try:
        path = new_file(directory / name)
    except OSError:
        return False
    kept = name in fsio.list_names(directory)
    fsio.remove_file(path)
    return kept


def _keeps_cases(directory: Path) -> bool:
    system = fsio.system()
    upper, lower = directory / "Case", directory / "case"
    system.mkdir(upper)
    try:
        system.mkdir(lower)
    except FileExistsError:
        return False
    return True


# --- space -----------------------------------------------------------------------------------


def probe_space(directory: Path) -> Iterator[Finding]:
    """Ask how much more fits."""
    found = fsio.system().statvfs(directory)
    size, files = found.f_bavail * found.f_frsize, found.f_favail
    known = found.f_files > 0  # some filesystems make room for files as they come
    facts: dict[str, Json] = {"free_bytes": size, "free_files": files if known else None}
    told = f"{size / 1e9:,.1f} GB are free" + (f", and room for {files:,} files" if known else "")
    if size < _FEW_BYTES or (known and files < _FEW_FILES):
        yield Finding(
            name="space",
            grade=Grade.MISSING,
            sentence=f"only {told}. A run takes a few files, a task of a pool two or three.",
            store=Level.RESTRICTED,
            pool=Level.RESTRICTED,
            because="there is little space left",
            facts=facts,
        )
        return
    yield Finding(name="space", sentence=f"{told}.", facts=facts)
