"""The only caller of the operating system's write calls, and the owner of their order.

Every change is one of four: replace a file, create a file exclusively, publish a directory whole,
move an entry. The crash harness replaces `os` in this module to die at, or record, each step.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

from ..errors import NotDurableError, WriteError, WriteRefusedError

__all__ = [
    "TEMPORARY_PREFIX",
    "count_names",
    "create_exclusive",
    "create_mark",
    "create_whole",
    "drop_private",
    "exists",
    "fsync_directory",
    "is_same_file",
    "is_temporary",
    "list_fresh",
    "list_names",
    "make_directories",
    "make_private",
    "modified_at",
    "move",
    "moved_at",
    "permissions",
    "private_beside",
    "read_bytes",
    "read_chunks",
    "read_range",
    "refusal",
    "remove_file",
    "rename",
    "renew_time",
    "replace_with",
    "secure_names",
    "server_time",
    "size_of",
    "stamp",
    "sync_file",
    "system",
    "write_all",
    "write_atomic",
    "write_new",
    "write_temporary",
    "writing",
]

# Names with this prefix are never data: a reader ignores them, the check removes old ones.
TEMPORARY_PREFIX: Final = ".tmp-"

_CHUNK: Final = 1 << 20
_READ_ATTEMPTS: Final = 5

_T = TypeVar("_T")
_counter = itertools.count()


def system() -> ModuleType:
    """Return what makes the calls: `os`, or what a harness has put in its place here."""
    return os


def is_temporary(name: str) -> bool:
    """Whether a name is one that an unfinished write may have left."""
    return name.startswith(TEMPORARY_PREFIX)


def private_beside(path: Path) -> Path:
    """Return a private name in the directory of a path, never given before."""
    # Host, pid and time make the name unique on a shared mount; `open` with O_EXCL proves it.
    host = socket.gethostname().partition(".")[0][:32]
    token = f"{host}-{os.getpid()}-{time.time_ns():x}-{next(_counter)}"
    return path.parent / f"{TEMPORARY_PREFIX}{token}"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of a write into an error that names the file and what to do."""
    try:
        yield
    except WriteError:
        raise
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refusal(path, error) from error


def refusal(path: Path, error: OSError) -> WriteError:
    """Return the error that names the file which could not be written, and what to do."""
    refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return (WriteRefusedError if refused else WriteError)(path, error)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable: a rename lives in the directory, not in the file.

    Raises
    ------
    NotDurableError
        If the system refuses; the names are there all the same.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some network and FUSE filesystems have no fsync of directories; they order renames
        # themselves or promise nothing that another call could improve.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise NotDurableError(path, error) from error


def secure_names(directory: Path, path: Path) -> None:
    """Make names durable on which nothing relies yet.

    Raises
    ------
    WriteError
        If the system refuses; it names `path`. The caller takes the names back.
    """
    try:
        fsync_directory(directory)
    except NotDurableError as error:
        raise WriteError(path, error) from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`, in as many calls as the system wants."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_temporary(path: Path, data: bytes, *, durable: bool = True) -> Path:
    """Write `data` to a new private file beside `path` and return its name.

    With `durable` the content is on stable storage when this returns.

    Raises
    ------
    WriteError
        If the system refuses; the private file is removed again.
    """
    temporary = private_beside(path)
    with writing(path):
        _write_new(temporary, data, durable=durable)
    return temporary


def write_new(path: Path, data: bytes) -> None:
    """Create a file of which the name is free; its content is durable when this returns.

    Raises
    ------
    WriteError
        If the system refuses; nothing of the file is left.
    """
    with writing(path):
        _write_new(path, data, durable=True)


def _write_new(path: Path, data: bytes, *, durable: bool) -> None:
    # 0o666 less the umask: files of a shared store stay readable for the group.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            write_all(descriptor, data)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        drop_private(path)
        raise


def drop_private(path: Path) -> None:
    """Remove a private name that is not needed any more.

    If that fails, what was done has not; the check removes the name later.
    """
    with contextlib.suppress(OSError):
        os.unlink(path)


def replace_with(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a finished private file over `path`, in the same directory.

    Notes
    -----
    *Readers* see the old or the new content. *A crash* leaves one of them.
    """
    with writing(path):
        try:
            rename(os.replace, temporary, path)
        except BaseException:
            drop_private(temporary)
            raise
        if durable:
            fsync_directory(path.parent)


def rename(call: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """Rename by a function of `os`, and believe what is there, not what is said.

    When the reply to a rename is lost, an NFS 3 client asks again, and hears that nothing is there
    to be renamed.
    """
    moved = os.lstat(source)
    try:
        call(source, target)
    except OSError as error:
        if not _is_at(target, moved) and not _was_private(source, error):
            raise


def _was_private(source: Path, error: OSError) -> bool:
    """Whether what is said to be missing had a name that nobody else takes away."""
    gone = isinstance(error, FileNotFoundError) and is_temporary(source.name)
    return gone and source.name not in list_fresh(source.parent)


def _is_at(path: Path, entry: os.stat_result) -> bool:
    try:
        # Where a name was missing, an NFS client believes that it is until its directory is opened,
        # and for longer if what it knows of the directory is as old as the last change.
        with contextlib.suppress(OSError):
            os.utime(path.parent)
        _open_directory(path.parent)
        # Where another file had the name, the client may still show that one until it is opened.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
        return os.path.samestat(os.lstat(path), entry)
    except OSError:
        return False


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace the file at `path` with `data`, all of it or none of it.

    Parameters
    ----------
    path : Path
        File to create or replace. Its directory must exist.
    data : bytes
        Complete new content.
    durable : bool, default True
        Return only once content and name are on stable storage. ``False`` keeps the replacement
        atomic for readers and leaves power loss to the system.

    Raises
    ------
    FileNotFoundError
        If the directory of `path` does not exist.
    WriteError
        If the system refuses the write; `path` keeps its old content.

    Notes
    -----
    *Readers* see the old or the new content, never a mixture. *Writers* racing on one path leave
    the content of one of them. *A crash* leaves the old or the new content and possibly one
    temporary file, which the check removes.
    """
    replace_with(write_temporary(path, data, durable=durable), path, durable=durable)


def create_exclusive(temporary: Path, path: Path, *, durable: bool = True) -> bool:
    """Give a finished private file the name `path`, unless that name is taken.

    Returns
    -------
    bool
        Whether this call created `path`. The private name is kept either way: as the second
        name of the file, by which its writer knows it, or for another try.

    Notes
    -----
    Uses ``link``, which never replaces; on NFS a lost reply makes a successful ``link`` report
    EEXIST or another error, so the inode decides. *Readers* see nothing or the whole file. The
    file counts as changed now, however long ago it was written.
    """
    with writing(path):
        try:
            os.utime(temporary)
            os.link(temporary, path)
        except OSError as error:
            if not _is_at(path, os.lstat(temporary)):
                if isinstance(error, FileExistsError):
                    return False
                drop_private(temporary)
                raise
        except BaseException:
            drop_private(temporary)
            raise
        if durable:
            fsync_directory(path.parent)
    return True


def create_whole(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Create a file with its content, unless the name is taken; return whether it did."""
    temporary = write_temporary(path, data, durable=durable)
    try:
        return create_exclusive(temporary, path, durable=durable)
    finally:
        drop_private(temporary)


def create_mark(path: Path) -> None:
    """Create an empty file, durable; one that is there already is as good."""
    with writing(path), contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    secure_names(path.parent, path)


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two names are those of one file; False if one of them is gone."""
    try:
        return os.path.samestat(os.stat(one), os.stat(other))
    except FileNotFoundError:
        return False


def count_names(path: Path) -> int:
    """Return how many names a file has, as the file server knows it."""
    return _asked(path).st_nlink


def make_directories(path: Path) -> None:
    """Create a directory and its parents, each durable in its parent. Existing ones are kept."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    with writing(missing[0] if missing else path):
        for directory in reversed(missing):
            try:
                os.mkdir(directory)
            except FileExistsError:
                pass
            except FileNotFoundError as error:  # where nothing can be created, as in /proc
                raise WriteError(directory, error) from error
            try:
                secure_names(directory.parent, directory)
            except WriteError:
                with contextlib.suppress(OSError):  # who finds it would take it for durable
                    os.rmdir(directory)
                raise


def move(source: Path, target: Path) -> None:
    """Rename an entry to a free name, possibly in another directory of the same filesystem.

    Raises
    ------
    FileExistsError
        If a file or a non-empty directory has the name `target`.
    """
    with writing(source):
        if os.path.lexists(target):
            raise WriteError(target, FileExistsError(errno.EEXIST, "the name is taken"))
        rename(os.rename, source, target)
        fsync_directory(target.parent)
        if source.parent != target.parent:
            fsync_directory(source.parent)


def make_private(path: Path) -> Path:
    """Rename an entry to a private name, which the check of a store sets aside when it is old."""
    private = private_beside(path)
    with writing(path):
        rename(os.rename, path, private)
    return private


def remove_file(path: Path) -> None:
    """Remove a file; one that is not there is no error."""
    with writing(path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def permissions(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)


def sync_file(path: Path) -> None:
    """Return once what others have written to a file is on stable storage."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, as the file server has it; 0 if it is gone."""
    try:
        return _asked(path).st_size
    except FileNotFoundError:
        return 0


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file piece by piece."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while chunk := os.read(descriptor, _CHUNK):
            yield chunk
    finally:
        os.close(descriptor)


def read_bytes(path: Path | str) -> bytes:
    """Return the content of a file.

    Notes
    -----
    On network filesystems a file that another node replaces may fail with ESTALE; the name is then
    looked up again. So is one that is said to be missing, which a client may say for half a minute
    of a name that it has asked for before it was given.
    """
    try:
        return _retry_stale(path, lambda: _read_once(path))
    except FileNotFoundError:
        _open_directory(Path(path).parent)
        return _read_once(path)


def _read_once(path: Path | str) -> bytes:
    # Three system calls and one copy; `Path.read_bytes` makes about twice as many.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size + 1)
        if len(data) == size:
            return data
        parts = [data]
        while part := os.read(descriptor, _CHUNK):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_range(path: Path, start: int, size: int) -> bytes:
    """Return a part of a file: at most `size` bytes from `start`, fewer at its end."""

    def read() -> bytes:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)

    return _retry_stale(path, read)


def list_names(path: Path) -> list[str]:
    """Return the names in a directory, unsorted, without temporary ones; none if it is missing."""
    try:
        names = _retry_stale(path, lambda: os.listdir(path))
    except FileNotFoundError:
        return []
    return [name for name in names if not is_temporary(name)]


def list_fresh(path: str | Path) -> list[str]:
    """Return all names in a directory as they are on the file server now, unsorted.

    Raises
    ------
    FileNotFoundError
        If it is missing.

    Notes
    -----
    A client of NFS 3 knows by the directory's time alone that a listing it has kept is old. One
    that was taken between two changes within a tick of the server's clock, some milliseconds,
    stays as it is until the next change, be that tomorrow. A client that sets the time itself
    forgets what it has kept. Where that is not allowed the listing may be such an old one.
    """
    with contextlib.suppress(OSError):
        os.utime(path)
    return os.listdir(path)


def exists(path: Path) -> bool:
    """Whether there is an entry of this name, be it a broken link.

    On NFS a "no" may be up to half a minute old, so it must only save work, never decide.
    """
    return os.path.lexists(path)


def modified_at(path: Path) -> float:
    """Return a file's modification time on the file server's clock, in seconds since the epoch."""
    return _asked(path).st_mtime


def moved_at(path: Path) -> float:
    """Return when an entry was renamed or changed last, in seconds on the file server's clock."""
    return _asked(path).st_ctime


def stamp(path: Path) -> tuple[int, int]:
    """Return inode and modification time (ns) of an entry, as the file server knows them.

    They change whenever an entry of a directory comes or goes. Two changes within the grain of
    the server's clock leave one stamp.
    """
    found = _asked(path)
    return found.st_ino, found.st_mtime_ns


def renew_time(path: Path) -> None:
    """Set the modification time of a file to the file server's present time."""
    os.utime(path)


def _asked(path: Path) -> os.stat_result:
    def ask() -> os.stat_result:
        # `stat` may answer from the client's cache for seconds; `fstat` after `open` asks.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    return _retry_stale(path, ask)


def server_time(near: Path) -> float:
    """Return what time it is on the file server that holds `near`, in seconds since the epoch.

    The clocks of two hosts are never compared: a fresh file beside `near` tells the server's.
    """
    probe = write_temporary(near, b"", durable=False)
    try:
        return modified_at(probe)
    finally:
        drop_private(probe)


def _retry_stale(path: str | Path, call: Callable[[], _T]) -> _T:
    for _ in range(_READ_ATTEMPTS - 1):
        try:
            return call()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            # A client of NFS 4 that was promised to be told of changes keeps opening the file that
            # was replaced, however often: opening the directory makes it look the name up again.
            _open_directory(Path(path).parent)
    return call()


def _open_directory(path: Path) -> None:
    with contextlib.suppress(OSError):  # whatever is wrong, what is tried next tells it better
        os.close(os.open(path, os.O_RDONLY))
