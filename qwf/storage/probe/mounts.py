"""What the kernel says about the filesystem of a directory: its kind, its server, its options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import fsio
from .findings import Finding, Grade, Level

__all__ = ["Mount", "find_mount", "judge_mount", "parse_mounts"]

_MOUNTS: Final = Path("/proc/self/mountinfo")

_NAME: Final = "filesystem"
_MEMORY: Final = ("tmpfs", "ramfs", "devtmpfs", "rootfs")
_NETWORK: Final = {
    "nfs": "NFS",
    "nfs4": "NFS",
    "cifs": "SMB (Windows shares)",
    "smb3": "SMB (Windows shares)",
    "9p": "9p (a directory of the host of this virtual machine)",
    "virtiofs": "virtiofs (a directory of the host of this virtual machine)",
    "vboxsf": "VirtualBox shared folder",
    "lustre": "Lustre",
    "ceph": "CephFS",
    "beegfs": "BeeGFS",
    "gpfs": "GPFS",
    "afs": "AFS",
    "fuse.glusterfs": "GlusterFS",
    "fuse.sshfs": "sshfs",
    "fuse.ceph": "CephFS",
    "fuse.ceph-fuse": "CephFS",
    "fuse.juicefs": "JuiceFS",
    "fuse.vmhgfs-fuse": "VMware shared folder",
}
# They show the objects of a store without rename as files: a rename is a copy and a removal.
_OBJECTS: Final = (
    "s3fs",
    "goofys",
    "gcsfuse",
    "rclone",
    "mountpoint-s3",
    "blobfuse",
    "blobfuse2",
    "ossfs",
    "cosfs",
)


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One line of the kernel's list of mounts."""

    point: str
    source: str
    kind: str
    options: Mapping[str, str]  # of the mount and of the filesystem; a flag's value is ""

    @property
    def is_network(self) -> bool:
        """Whether other hosts may see the same files, at other times than this one."""
        return self.kind in _NETWORK or self._program in _OBJECTS

    @property
    def _program(self) -> str:
        """The program behind a FUSE mount, of which some say only by their source."""
        if not self.kind.startswith("fuse"):
            return ""
        return self.kind.partition(".")[2] or self.source.partition("#")[0]

    @property
    def is_object_store(self) -> bool:
        """Whether it shows an object store as files."""
        return self._program in _OBJECTS

    @property
    def in_words(self) -> str:
        """What it is, for people."""
        if self.kind in ("nfs", "nfs4"):
            version = self.options.get("vers", "4" if self.kind == "nfs4" else "?")
            return f"NFS version {version}, served by {self.source}"
        if self.kind in _MEMORY:
            return f"{self.kind}, which is this machine's memory"
        if self.kind == "overlay":
            return "overlayfs, most often the private layer of a container"
        if self.is_network or self.kind.startswith("fuse"):
            return f"{_NETWORK.get(self.kind, self.kind)}, mounted from {self.source}"
        return f"{self.kind} on {self.source}, a disk of this machine"


def find_mount(path: Path) -> Mount | None:
    """Return the mount that a directory is on; None where the kernel does not tell."""
    try:
        text = fsio.read_bytes(_MOUNTS).decode(errors="surrogateescape")
    except OSError:
        return None
    holding = [one for one in parse_mounts(text) if path.is_relative_to(one.point)]
    # Of several on one point the last one covers the others.
    return (
        max(enumerate(holding), key=lambda one: (len(one[1].point), one[0]))[1] if holding else None
    )


def parse_mounts(text: str) -> Iterator[Mount]:
    r"""Yield the mounts of a text in the format of ``/proc/self/mountinfo``.

    Examples
    --------
    >>> line = r"36 35 0:31 / /mnt/a\040b rw,noatime shared:1 - nfs4 host:/x rw,vers=4.2,hard"
    >>> (mount,) = parse_mounts(line)
    >>> mount.point, mount.kind, mount.options["vers"]
    ('/mnt/a b', 'nfs4', '4.2')
    """
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, others = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(others) < 3:
            continue
        options = dict(
            option.partition("=")[::2]
            for option in [*fields[5].split(","), *" ".join(others[2:]).split(",")]
        )
        yield Mount(
            point=_unescaped(fields[4]),
            source=_unescaped(others[1]),
            kind=others[0],
            options=options,
        )


def _unescaped(name: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), name)


def judge_mount(mount: Mount | None, *, meets: bool = False) -> list[Finding]:
    """Return what kind and options of a mount mean for qwf; one that meets asks other hosts."""
    if mount is None:
        return [Finding(name=_NAME, sentence="this system does not tell what filesystem it is.")]
    facts = {
        "type": mount.kind,
        "source": mount.source,
        "mount_point": mount.point,
        "options": ",".join(
            f"{key}={text}" if text else key for key, text in mount.options.items()
        ),
    }
    first = Finding(name=_NAME, sentence=f"{mount.in_words}.", facts=facts)
    return [first, *_kinds(mount, meets=meets), *_options(mount)]


def _kinds(mount: Mount, *, meets: bool) -> Iterator[Finding]:
    if mount.kind in _MEMORY:
        yield _doubt(
            "memory",
            "it is gone when the machine restarts",
            Grade.MISSING,
            "everything in it is gone when this machine restarts, and no other host sees it",
        )
    if mount.is_object_store:
        yield Finding(
            name="object store",
            grade=Grade.WRONG,
            sentence="this mount shows an object store, which has no rename: two hosts can both "
            "move one file.",
            store=Level.FORBIDDEN,
            pool=Level.FORBIDDEN,
            because="an object store cannot rename",
        )
    if mount.kind == "overlay" and "volatile" in mount.options:
        yield _doubt(
            "volatile",
            "this container's layer is mounted to forget (volatile)",
            Grade.MISSING,
            "what is written may be lost when the machine crashes",
        )
    elif mount.kind == "overlay":
        yield _note(
            "container",
            "it vanishes with the container, and others do not see it: keep "
            "what shall stay on a volume",
            "if this is a container's own layer, it vanishes with the container",
        )
    if mount.is_network and not mount.is_object_store and not meets:
        yield _note(
            "other hosts",
            "other hosts may see changes later than this one; only a test "
            "with two of them can tell: run qwf doctor PATH --meet on both",
            "only this host was tested, and --meet tests two",
        )


def _options(mount: Mount) -> Iterator[Finding]:
    if "ro" in mount.options:
        yield Finding(
            name="read-only",
            grade=Grade.MISSING,
            sentence="the mount is read-only (ro): a store here can be read and not changed.",
            store=Level.FORBIDDEN,
            pool=Level.FORBIDDEN,
            because="the mount is read-only",
        )
    if mount.options.get("barrier") == "0" or "nobarrier" in mount.options:
        yield _note(
            "nobarrier",
            "the disk is not told to write in order (nobarrier): without a "
            "battery the loss of power may cost what was saved",
            "with nobarrier the disk itself must survive the loss of power",
        )
    if mount.kind in ("nfs", "nfs4"):
        yield from _nfs_options(mount.options)
    if mount.kind in ("cifs", "smb3", "9p") and mount.options.get("cache") in ("loose", "fscache"):
        yield _doubt(
            "cache",
            f"this host believes its cache without asking "
            f"(cache={mount.options['cache']}); mount with cache=none or strict",
            Grade.WRONG,
            "other hosts' changes are seen late or never",
        )
    silent = {"nobrl", "localflock", "noflock"} & set(mount.options)
    if silent:
        yield _local_locks(min(silent))


def _nfs_options(options: Mapping[str, str]) -> Iterator[Finding]:
    if {"soft", "softerr"} & set(options):
        yield _doubt(
            "soft",
            "when the server is slow, calls fail instead of waiting, and written "
            "data can be lost without a word; mount with hard",
            Grade.WRONG,
            "the mount is soft, so that a slow server costs data",
        )
    if "nocto" in options:
        yield _doubt(
            "nocto",
            "files are opened without asking the server (nocto); mount without it",
            Grade.WRONG,
            "other hosts' changes are seen late (nocto)",
        )
    if "nolock" in options or options.get("local_lock", "none") in ("all", "flock"):
        yield _local_locks(
            "nolock" if "nolock" in options else f"local_lock={options['local_lock']}"
        )
    elif options.get("vers", "").startswith(("2", "3")):
        yield Finding(
            name="dead hosts",
            sentence="with this version a lock of a host that loses "
            "power stays until it is back. qwf does without: a lock decides nothing.",
        )
    caching = [
        f"{key}={options[key]}" if options[key] else key
        for key in (
            "noac",
            "actimeo",
            "acregmin",
            "acregmax",
            "acdirmin",
            "acdirmax",
            "lookupcache",
        )
        if key in options
    ]
    if caching:
        slow = "noac" in options or options.get("actimeo") == "0"
        yield Finding(
            name="caching",
            grade=Grade.SLOW if slow else Grade.OK,
            sentence=f"{', '.join(caching)}: qwf asks the server where it matters, and needs none "
            f"of this{'; it makes every call slower' if slow else ''}.",
        )


def _local_locks(option: str) -> Finding:
    return _note(
        "locks of hosts",
        f"{option}: a lock excludes processes of this host only. qwf "
        "does without: a change that another host makes at the same moment is noticed and "
        "made again",
        "locks do not keep other hosts out, which qwf bears",
    )


def _doubt(name: str, sentence: str, grade: Grade, because: str) -> Finding:
    return Finding(
        name=name,
        grade=grade,
        sentence=f"{sentence}.",
        store=Level.RESTRICTED,
        pool=Level.RESTRICTED,
        because=because,
    )


def _note(name: str, sentence: str, because: str) -> Finding:
    return Finding(
        name=name,
        grade=Grade.MISSING,
        sentence=f"{sentence}.",
        store=Level.TOLD,
        pool=Level.TOLD,
        because=because,
    )
