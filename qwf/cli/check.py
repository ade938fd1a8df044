"""``qwf check``: what is wrong in a store."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..config import C
from ..pool.check import check_pools
from ..storage.findings import Finding
from ..storage.layout import parse_uri
from ..tracking.check import check_store

__all__ = ["print_findings", "run_check"]


def run_check(options: Namespace) -> int:
    """Print the findings and return 1 if something is left that is wrong, else 0."""
    given = options.store if options.uri is None else options.uri
    root = parse_uri(C.uri if given is None else given)
    findings = check_store(root, repair=options.repair)
    findings += check_pools(root, repair=options.repair)
    return print_findings(findings, root, options)


def print_findings(findings: Sequence[Finding], root: Path, options: Namespace) -> int:
    """Print what a check has found, and return 1 if something is left that is wrong, else 0."""
    foreign = [finding for finding in findings if finding.foreign]
    left = [finding for finding in findings if not finding.repaired and not finding.foreign]
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = "repaired" if finding.repaired else "foreign" if finding.foreign else "wrong"
            print(f"{mark:>8}  {finding.path}: {finding.problem} ({finding.action})")
        repaired = len(findings) - len(left) - len(foreign)
        print(f"{root}: {repaired} repaired, {len(left)} wrong, {len(foreign)} foreign.")
    return 1 if left else 0
