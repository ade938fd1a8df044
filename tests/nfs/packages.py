"""What the guest consists of: Debian packages, downloaded and unpacked but not installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .refusal import CannotRunError

__all__ = ["find_program", "prepare"]

_WANTED = ("user-mode-linux", "nfs-kernel-server", "nfs-common", "rpcbind", "iproute2")

_PLACES = ("usr/sbin", "usr/bin", "sbin", "bin")

_SECONDS = 300

# Root's apt would download as another user, who may not write here.
_AS_ME = ("-o", "APT::Sandbox::User=root", "-q")


def prepare(cache: Path) -> Path:
    """Download and unpack what is missing on this machine.

    Parameters
    ----------
    cache : Path
        A directory for this alone. A second call with the same finds everything there.

    Returns
    -------
    Path
        What would be the root directory if the packages were installed.

    Raises
    ------
    CannotRunError
        If this machine cannot download or unpack them.
    """
    root = cache / "root"
    if not root.is_dir():
        _need_programs("apt-get", "dpkg")
        new = cache / "root.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for package in _download(cache):
            _run("dpkg", "--extract", str(package), str(new))
        new.rename(root)  # whole, or not at all
    return root


def find_program(name: str, root: Path = Path("/")) -> Path | None:
    """Where a program of the packages is: unpacked below `root`, or installed already."""
    for place in (root, Path("/")):
        for directory in _PLACES:
            program = place / directory / name
            if os.access(program, os.X_OK):
                return program
    return None


def _need_programs(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            raise CannotRunError(f"{name} is missing, by which the guest's packages are fetched")


def _download(cache: Path) -> list[Path]:
    try:
        return _download_as_listed(cache, _AS_ME)
    except CannotRunError:
        # The machine's list of packages is missing or too old; it is not ours to renew.
        lists, archives = cache / "apt" / "lists", cache / "apt" / "cache"
        for directory in (lists, archives):
            (directory / "partial").mkdir(parents=True, exist_ok=True)
        own = (*_AS_ME, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}")
        _run("apt-get", *own, "-o", "APT::Update::Error-Mode=any", "update")
        return _download_as_listed(cache, own)


def _download_as_listed(cache: Path, options: Sequence[str]) -> list[Path]:
    wanted = [*_WANTED] if find_program("mkfs.ext4") else [*_WANTED, "e2fsprogs"]
    install = ("install", "--simulate", "--no-install-recommends", "--no-upgrade")
    missing = names_to_install(_run("apt-get", *options, *install, *wanted))
    directory = cache / "packages"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if missing:
        _run("apt-get", *options, "download", *missing, cwd=directory)
    return sorted(directory.glob("*.deb"))


def names_to_install(simulated: str) -> list[str]:
    """Read from the output of ``apt-get install --simulate`` what would be installed.

    >>> names_to_install("Inst rpcbind (1.2.6 Debian:12 [amd64])\\nConf rpcbind (1.2.6)\\n")
    ['rpcbind']
    """
    return re.findall(r"^Inst (\S+)", simulated, flags=re.MULTILINE)


def _run(*command: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"{command[0]} did not end within {_SECONDS} s") from error
    if done.returncode != 0:
        told = done.stderr.strip().splitlines() or ["it told nothing"]
        raise CannotRunError(f"{command[0]} cannot get the guest's packages: {told[-1]}")
    return done.stdout
