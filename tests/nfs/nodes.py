"""The hosts of a cluster inside the guest, and the directories that they share."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from . import kernel

__all__ = ["FORK", "LOSING", "Mount", "Node"]

# The mount on which replies are lost.
LOSING = "v3-losing"

# qwf is imported once: in this kernel, system calls are slow, and each import takes seconds.
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Node:
    """A host: a network and a hostname of its own, so that it is a client of its own to a server.

    Two mounts of one host would be one client, from which the server need not take anything back.
    """

    name: str
    address: str
    holder: int  # the process that keeps both

    @classmethod
    def create(cls, name: str, address: str) -> Node:
        here, there = FORK.Pipe()

        def hold() -> None:
            kernel.separate(f"node-{name}")
            there.send(True)
            time.sleep(10_000)

        holder = FORK.Process(target=hold, daemon=True)
        holder.start()
        here.recv()
        assert holder.pid
        return cls(name, address, holder.pid)

    def process(self, function: Callable[..., None], *arguments: Any) -> BaseProcess:
        """Return a process, not started yet, that calls a function on this node."""

        def call() -> None:
            kernel.join(self.holder)
            function(*arguments)

        return FORK.Process(target=call, name=f"{function.__name__} on {self.name}")

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a new process on this node and return what it returns."""
        here, there = FORK.Pipe(duplex=False)
        process = self.process(lambda: there.send(function(*arguments)))
        process.start()
        there.close()
        try:
            return here.recv()
        except EOFError:
            raise RuntimeError(f"{function.__name__} failed on node {self.name}") from None
        finally:
            process.join()


@dataclass(frozen=True)
class Mount:
    """One directory, as each of two nodes sees it and as the server does."""

    name: str
    kind: str  # as in /proc/mounts
    nodes: tuple[Node, Node]
    top: Path
    on_server: Path

    def on(self, node: Node) -> Path:
        """Where `node` has mounted it."""
        return self.top / self.name / node.name

    def attach(self, source: str, options: str) -> None:
        """Mount it on both nodes."""
        for node in self.nodes:
            of_node = options.replace("CLIENT", node.address)
            node.ask(kernel.mount, source, self.on(node), self.kind, of_node)

    def kinds(self) -> list[str]:
        """Return what is really mounted on the nodes, as /proc/mounts says."""
        rows = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        places = [os.fspath(self.on(node)) for node in self.nodes]
        return [f"{row[2]} {row[3]}" for row in rows if row[1] in places]
