"""Stands before an NFS server and loses the replies to some renames.

The server renames; then the connection is cut before its reply is passed on. The client connects
again and repeats the call, as after a failover, and is told that the name is not there. Calls of
NFS 3 are recognised (in 4.2 the server remembers its replies by session, so that nothing is lost).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["ConnectionEndedError", "LosingProxy", "read_message", "rename_call", "write_message"]

_CALL: Final = 0
_NFS: Final = 100003
_VERSION: Final = 3
_RENAME: Final = 14

_LAST_FRAGMENT: Final = 0x80000000


def rename_call(message: bytes) -> int | None:
    """Return the number of the call if `message` asks to rename, else None.

    Parameters
    ----------
    message : bytes
        A message of Sun RPC (RFC 5531), without the marks of its fragments.

    Examples
    --------
    >>> import struct
    >>> rename_call(struct.pack(">6I", 7, 0, 2, 100003, 3, 14))
    7
    >>> rename_call(struct.pack(">6I", 7, 0, 2, 100003, 3, 1)) is None
    True
    """
    if len(message) < 24:
        return None
    number, kind, _rpc, program, version, procedure = struct.unpack(">6I", message[:24])
    asked = (kind, program, version, procedure)
    return number if asked == (_CALL, _NFS, _VERSION, _RENAME) else None


class ConnectionEndedError(Exception):
    """One side has closed the connection."""


def _read_exactly(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        try:
            part = connection.recv(min(length, 1 << 20))
        except OSError as error:
            raise ConnectionEndedError from error
        if not part:
            raise ConnectionEndedError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def read_message(connection: socket.socket) -> bytes:
    """Read one message, the fragments put together."""
    fragments = []
    while True:
        (mark,) = struct.unpack(">I", _read_exactly(connection, 4))
        fragments.append(_read_exactly(connection, mark & ~_LAST_FRAGMENT))
        if mark & _LAST_FRAGMENT:
            return b"".join(fragments)


def write_message(connection: socket.socket, message: bytes) -> None:
    """Write a message as one fragment."""
    try:
        connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(message)) + message)
    except OSError as error:
        raise ConnectionEndedError from error


class LosingProxy:
    """Passes calls to a server and loses the reply to every so-manieth rename.

    Parameters
    ----------
    listen, server : tuple of str and int
        Addresses.
    every : int
        10: the replies to the tenth, twentieth ... rename are lost. A repeated call is not
        counted, and its reply not lost.

    Attributes
    ----------
    renames, lost : int
        How many renames were asked for, and to how many the reply was lost.
    """

    def __init__(self, listen: tuple[str, int], server: tuple[str, int], every: int) -> None:
        self.renames = 0
        self.lost = 0
        self._server, self._every = server, every
        self._numbers: set[int] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(listen, backlog=64)
        self.address: tuple[str, int] = self._listener.getsockname()

    def start(self) -> None:
        """Serve in threads until the proxy is closed."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that there are last until a side ends them."""
        self._listener.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    client, _ = self._listener.accept()
                except OSError:  # closed
                    return
                server = socket.create_connection(self._server)
                _Connection(client, server, self._loses).start()

    def _loses(self, message: bytes) -> int | None:
        """Count a rename; return its number if the reply is to be lost."""
        number = rename_call(message)
        if number is None:
            return None
        with self._lock:
            if number in self._numbers:
                return None
            self.renames += 1
            if self.renames % self._every:
                return None
            self._numbers.add(number)
            self.lost += 1
            return number


class _Connection:
    """One client's connection, and the proxy's own to the server."""

    def __init__(
        self, client: socket.socket, server: socket.socket, loses: Callable[[bytes], int | None]
    ) -> None:
        self._client, self._server, self._loses = client, server, loses
        self._to_lose: set[int] = set()
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with self._client, self._server:
            replies = threading.Thread(target=self._until_ended, args=(self._pass_replies,))
            replies.start()
            self._until_ended(self._pass_calls)
            replies.join()

    def _until_ended(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(ConnectionEndedError):
            work()
        for side in (self._client, self._server):  # the other thread waits for one of them
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _pass_calls(self) -> None:
        while True:
            message = read_message(self._client)
            number = self._loses(message)
            if number is not None:
                self._to_lose.add(number)
            write_message(self._server, message)

    def _pass_replies(self) -> None:
        while True:
            message = read_message(self._server)
            (number,) = struct.unpack(">I", message[:4])
            if number in self._to_lose:
                return
            write_message(self._client, message)
