"""What is wrong with the tasks of a pool: tokens, definitions, results, failures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Final

from ..errors import CorruptRecordError, FormatVersionError
from ..storage import fsio
from ..storage.entries import move_entry, name_privately, unlink_entry
from ..storage.findings import UPGRADE, Remedy, Workbench, newer
from .directory import Directory
from .insertion import finish
from .look import Look, Problem
from .records import identity_of, parse_definition, parse_failure, parse_result
from .tokens import DONE, NO_RESULT, PART_DONE, RUNNING, WAITING, Token, rank_of
from .transitions import result_path
from .workers import Worker

__all__ = ["TaskCheck"]

_CHANGED: Final = "it has changed meanwhile"
_WHEN_ENDED: Final = "check again when its attempt has ended"
_AGAIN: Final = "has it done again"


class TaskCheck:
    """Compares what one look has shown with what each task needs.

    Parameters
    ----------
    directory : Directory
    bench : Workbench
    worker : callable
        Returns this process as a worker; only called to set something right.
    look : Look
    """

    def __init__(
        self, directory: Directory, bench: Workbench, worker: Callable[[], Worker], look: Look
    ) -> None:
        self._directory, self._bench, self._worker, self._look = directory, bench, worker, look

    def problems(self) -> Iterator[Problem]:
        """Yield what seems wrong."""
        look = self._look
        for identity in sorted(look.tokens.keys() | look.definitions):
            if identity in look.being_removed:
                continue  # a task of this id may be there twice, or in part
            for found in (self._names, self._definition, self._result):
                problems = [*found(identity)]
                yield from problems
                if problems:
                    break  # what is left of it is seen when this was set right
        yield from self._orphans()

    # --- tokens ---

    def _names(self, identity: str) -> Iterator[Problem]:
        found = self._look.tokens.get(identity, [])
        if len(found) > 1:
            yield from self._superfluous(found)
            return
        for status, token in found:
            path = Path(self._directory.path(status, token))
            back = PART_DONE if token.has_result else WAITING
            if status == RUNNING and not token.worker:
                remedy = self._moving(token, status, token.released(), back)
                yield Problem(path, "it runs, and its name tells no owner", remedy)
            elif status != RUNNING and token.worker:
                remedy = self._moving(token, status, token.released(), status)
                yield Problem(path, "it does not run, and its name tells an owner", remedy)

    def _superfluous(self, found: list[tuple[str, Token]]) -> Iterator[Problem]:
        """Of several tokens of one id that of the definition's file stays, else the latest."""
        definition = Path(self._directory.definitions, found[0][1].id)

        def rank(one: tuple[str, Token]) -> tuple[bool, str, int]:
            same = fsio.is_same_file(definition, Path(self._directory.path(*one)))
            return same, one[1].time, one[1].epoch

        *others, kept = sorted(found, key=rank)
        of_one_file = rank(kept)[0]
        for one in others:
            path = Path(self._directory.path(*one))
            text = f"the task has another token, {self._short(kept)}"
            if of_one_file and rank(one)[0]:  # which keeps what is in it
                yield Problem(path, text, Remedy("removes this name", partial(_unlink, path)))
            else:
                yield Problem(path, text, self._bench.parking(path))

    @staticmethod
    def _short(one: tuple[str, Token]) -> str:
        return f"{one[0]}/{one[1].name}"

    # --- definitions ---

    def _definition(self, identity: str) -> Iterator[Problem]:
        tokens = self._look.tokens.get(identity)
        path = Path(self._directory.definitions, identity)
        if identity not in self._look.definitions:
            for status, token in tokens or ():
                yield from self._without_definition(status, token)
        elif tokens is None:
            yield from self._without_token(identity, path)
        else:
            yield from self._with_token(*tokens[0], path)

    def _with_token(self, status: str, token: Token, path: Path) -> Iterator[Problem]:
        of_token = Path(self._directory.path(status, token))
        reason = self._unsound(token.id, path)
        # Of two files, as a copy without hard links has them, one may be sound.
        apart = not fsio.is_same_file(path, of_token) and fsio.exists(of_token)
        other = self._unsound(token.id, of_token) if apart else reason
        for name, found in ((path, reason), (of_token, other)):
            if isinstance(found, FormatVersionError):
                yield Problem(name, newer(found), UPGRADE)
                return
        if reason is not None and other is not None:
            remedy = self._parking([path, of_token])
            yield Problem(path, str(reason), self._unless_running(status, remedy))
        elif reason is not None:
            remedy = Remedy(
                "restores it from the token", partial(self._restore, token, path, of_token)
            )
            yield Problem(path, str(reason), self._unless_running(status, remedy))
        elif other is not None:
            remedy = Remedy(
                "makes a token of its definition", partial(self._replace, status, token, path)
            )
            yield Problem(of_token, str(other), self._unless_running(status, remedy))
        else:
            yield from self._two_names(status, token, path)

    def _unsound(self, identity: str, path: Path) -> str | FormatVersionError | None:
        """Return what is wrong with a definition's content; None also if it is not there."""
        return _damage_of(path, partial(_parse_as, identity))

    def _without_definition(self, status: str, token: Token) -> Iterator[Problem]:
        path = Path(self._directory.path(status, token))
        text = "the task has no definition"
        reason = self._unsound(token.id, path)
        if isinstance(reason, FormatVersionError):
            yield Problem(path, newer(reason), UPGRADE)
        elif reason is not None:
            remedy = self._unless_running(status, self._bench.parking(path))
            yield Problem(path, f"{text} but in the token, and {reason}", remedy)
        elif self._keeps_links:
            remedy = Remedy("gives it the token's", partial(self._define, token, path))
            yield Problem(path, f"{text} but in the token", remedy)

    def _without_token(self, identity: str, path: Path) -> Iterator[Problem]:
        # One name only: nobody is about to insert or move it.
        if identity in self._look.being_inserted or _names_of(path) != 1 or not self._keeps_links:
            return
        reason = self._unsound(identity, path)
        if isinstance(reason, FormatVersionError):
            yield Problem(path, newer(reason), UPGRADE)
        elif reason is not None:
            yield Problem(path, reason, self._bench.parking(path))
        else:
            remedy = Remedy("makes it wait", partial(self._make_wait, identity, path))
            yield Problem(path, "the task has no token, so that nobody can take it", remedy)

    def _two_names(self, status: str, token: Token, path: Path) -> Iterator[Problem]:
        of_token = Path(self._directory.path(status, token))
        same, names = fsio.is_same_file(path, of_token), _names_of(path)
        if same and names > 2:
            text = f"its file has {names} names, and qwf gave it two: a copy made of hard links?"
            yield Problem(path, text, "", foreign=True)
        elif not same and fsio.exists(of_token) and self._keeps_links:
            text = "definition and token are two files: a copy that has not kept hard links?"
            remedy = Remedy("makes them one", partial(self._join, token, path, of_token))
            yield Problem(path, text, self._unless_running(status, remedy))

    @cached_property
    def _keeps_links(self) -> bool:
        """Whether this filesystem tells of two names of a file that they are."""
        one = Path(self._directory.private, "links")
        with contextlib.suppress(OSError):
            probe = fsio.write_temporary(one, b"", durable=False)
            other = probe.with_name(f"{probe.name}-2")
            try:
                fsio.create_exclusive(probe, other, durable=False)
                return _names_of(probe) == 2 and fsio.is_same_file(probe, other)
            finally:
                fsio.drop_private(probe)
                fsio.drop_private(other)
        return False

    # --- results ---

    def _result(self, identity: str) -> Iterator[Problem]:
        for status, token in self._look.tokens.get(identity, []):
            path = Path(self._directory.path(status, token))
            done = status in (DONE, PART_DONE)
            if not token.has_result:
                if done:
                    yield Problem(
                        path, f"it is {status} without a result", self._redo(status, token)
                    )
                continue
            yield from self._accepted(status, token, path)

    def _accepted(self, status: str, token: Token, path: Path) -> Iterator[Problem]:
        result = Path(result_path(self._directory, token))
        epoch = int(token.result[:6], 16)
        if epoch >= token.epoch:
            text = f"its result is of epoch {epoch}, and it has come to {token.epoch} only"
            new = token.released()._replace(epoch=epoch + 1)
            remedy = self._unless_running(status, self._moving(token, status, new, status))
            yield Problem(path, text, remedy)
            return
        try:
            parse_result(fsio.read_bytes(result), str(result))
        except FileNotFoundError:
            text = f"its result {result.name} is missing"
            yield Problem(path, text, self._unless_running(status, self._redo(status, token)))
        except FormatVersionError as error:
            yield Problem(result, newer(error), UPGRADE)
        except (OSError, CorruptRecordError) as error:
            reason = error.reason if isinstance(error, CorruptRecordError) else str(error)
            yield Problem(result, reason, self._bench.parking(result))

    def _redo(self, status: str, token: Token) -> Remedy:
        """Return the remedy by which a task is done again whose result is lost."""
        target = WAITING if status in (DONE, PART_DONE) else status
        new = token.released(attempts=0, result=NO_RESULT)
        return self._moving(token, status, new, target, _AGAIN)

    def _orphans(self) -> Iterator[Problem]:
        look, directory = self._look, self._directory
        named, running, there = set(), set(), set()
        for status, token in look.all_tokens():
            there.add(f"{token.id}.{token.time}")
            named.add(f"{token.id}.{token.time}.{token.result}")
            if status == RUNNING:  # it may be committing
                running.add(f"{token.id}.{token.time}.{token.epoch:06x}{token.worker}")
        ending = {name[:48] for name in running}  # their failures may be just being written
        unsure = look.being_removed | (look.definitions - look.tokens.keys())
        for name in sorted(look.results - named - running):
            path = Path(directory.results, name)
            if name[:24] not in unsure:
                yield Problem(path, "no task has this result", self._bench.parking(path))
        for name in sorted(look.failures):
            path = Path(directory.failures, name)
            if name[:41] in there:
                if name[:48] not in ending:
                    yield from self._failure(path)
            elif name[:24] not in unsure:
                yield Problem(
                    path, "there is no task that has failed so", self._bench.parking(path)
                )

    def _failure(self, path: Path) -> Iterator[Problem]:
        damage = _damage_of(path, parse_failure)
        if isinstance(damage, FormatVersionError):
            yield Problem(path, newer(damage), UPGRADE)
        elif damage is not None and not self._is_told_by_another(path):
            yield Problem(path, damage, self._bench.parking(path))

    def _is_told_by_another(self, path: Path) -> bool:
        """Whether a whole file tells of this attempt: a crash while writing one leaves another."""
        others = [name for name in self._look.failures if name[:48] == path.name[:48]]
        paths = [path.with_name(name) for name in others if name != path.name]
        return any(_damage_of(one, parse_failure) is None for one in paths)

    # --- remedies ---

    @staticmethod
    def _unless_running(status: str, remedy: Remedy) -> Remedy | str:
        return _WHEN_ENDED if status == RUNNING else remedy

    def _moving(
        self, token: Token, status: str, new: Token, target: str, offer: str = ""
    ) -> Remedy:
        def apply() -> str:
            if not self._directory.move(token, status, new, target):
                return _CHANGED
            self._directory.note_order()
            return f"it is {target} now"

        return Remedy(offer or f"makes it {target}", apply)

    def _parking(self, names: list[Path]) -> Remedy:
        def apply() -> str:
            return "; ".join([self._bench.park(name) for name in names])

        return Remedy(self._bench.parking(names[0]).offer, apply)

    def _define(self, token: Token, path: Path) -> str:
        definitions = self._directory.definitions
        with contextlib.suppress(FileNotFoundError):
            if name_privately(str(path), f"{definitions}/{token.id}"):
                fsio.fsync_directory(Path(definitions))
                return "definition and token are one file now"
        return _CHANGED

    def _restore(self, token: Token, path: Path, of_token: Path) -> str:
        """Set a definition aside, then make the token's file the definition's.

        After *a crash* in between there is none, which the next repair makes of the token.
        """
        return f"{self._bench.park(path)}; {self._define(token, of_token)}"

    def _replace(self, status: str, token: Token, path: Path) -> str:
        """Make a later token of the definition, then set this one aside.

        In this order, since without any token the task's status is lost. After *a crash* there
        are two, of which the check keeps that of the definition's file.
        """
        directory = self._directory
        old = Path(directory.path(status, token))
        new = Path(directory.path(status, token._replace(epoch=token.epoch + 1)))
        with contextlib.suppress(FileNotFoundError):
            if fsio.exists(new) or not name_privately(str(path), str(new)):
                return _CHANGED
            fsio.fsync_directory(new.parent)
            if fsio.is_same_file(path, new) and fsio.exists(old):
                directory.note_order()
                return f"{self._bench.park(old)}; definition and token are one file now"
        unlink_entry(str(new))  # the task was removed, or taken
        return _CHANGED

    def _make_wait(self, identity: str, path: Path) -> str:
        directory, worker = self._directory, self._worker()
        now = fsio.server_time(Path(directory.private, "clock"))
        (when,) = worker.insertion_times(1, now)
        token = Token(rank_of(None), f"{when:016x}", identity, 1, 0, NO_RESULT)
        mine = f"{directory.private}/{worker.private_name(token.name)}"
        with contextlib.suppress(FileNotFoundError):
            name_privately(str(path), mine)
            # With two names it is nobody's but mine; else another has seen the same.
            if _names_of(Path(mine)) == 2 and finish(directory, mine, token):
                directory.note_order()
                return "it is waiting now"
        unlink_entry(mine)
        return _CHANGED

    def _join(self, token: Token, path: Path, of_token: Path) -> str:
        """Make the token's file the definition's too; whoever removes the task gets ahead of it."""
        directory, worker = self._directory, self._worker()
        old = f"{directory.private}/{worker.private_name('replaced')}"
        if not move_entry(str(path), old):
            return _CHANGED
        done = self._define(token, of_token)
        unlink_entry(old)
        return done


def _parse_as(identity: str, data: bytes, path: str) -> None:
    if identity_of(parse_definition(data, path)) != identity:
        reason = "its definition is not the one that its id is the hash of: edited, or damaged"
        raise CorruptRecordError(path, reason)


def _damage_of(
    path: Path, parse: Callable[[bytes, str], object]
) -> str | FormatVersionError | None:
    """Return what is wrong with a file's content; None also if it is not there."""
    try:
        parse(fsio.read_bytes(path), str(path))
    except FileNotFoundError:
        return None
    except FormatVersionError as error:
        return error
    except CorruptRecordError as error:
        return error.reason
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


def _names_of(path: Path) -> int:
    try:
        return fsio.count_names(path)
    except OSError:
        return 0


def _unlink(path: Path) -> str:
    unlink_entry(str(path))
    return "this name was removed"
