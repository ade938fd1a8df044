"""What the guest has found: as tables, and as sentences about what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from .nodes import LOSING
from .visibility import ALWAYS, QUESTIONS, TIMES

__all__ = ["EXPECTED", "failures", "tables"]

# The name of each mount, and what /proc/mounts must say of it on both nodes.
EXPECTED = {
    "v4.2": ("nfs4", "vers=4.2"),
    "v3": ("nfs", "vers=3"),
    LOSING: ("nfs", "vers=3"),
}

Found = dict[str, Any]


def tables(found: Found) -> str:
    """Return what was done and seen, for people."""
    mounts = found["scenarios"]
    rows = [
        (
            *("mount", "tasks", "done once", "left behind", "workers killed", "tasks taken over"),
            *("late commits refused", "renames denied that happened", "seconds"),
        )
    ]
    for name, of_mount in mounts.items():
        drain = of_mount["drain"]
        done = Counter(number for number, _, _ in drain["books"]["done"])
        rows.append(
            (
                *(name, len(drain["ids"][0]), sum(times == 1 for times in done.values())),
                *(len(drain["disk"]["running"]) + len(drain["disk"]["waiting"]),),
                *(
                    len(drain["killed"]),
                    len(_taken_over(drain)),
                    len(of_mount["sleeper"]["refused"]),
                ),
                *(f"{len(of_mount['race']['denied'])} of {len(of_mount['race']['files'])}",),
                of_mount["seconds"],
            )
        )
    seen = [(f"what node B sees at once of what node A did ({TIMES} times)", *mounts)]
    for key, question in QUESTIONS.items():
        seen.append((question, *(of_mount["visibility"][key] for of_mount in mounts.values())))
    clients = ", ".join(found["clients"])
    head = f"Linux {found['kernel']}; the server's clients of version 4: {clients}"
    return "\n\n".join([head, _aligned(rows), _aligned(seen)])


def _aligned(rows: Sequence[Sequence[object]]) -> str:
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )


def failures(found: Found) -> list[str]:
    """Return a sentence for each thing that is not as it must be."""
    return list(_failures(found))


def _failures(found: Found) -> Iterator[str]:
    if len(set(found["clients"])) != 2:
        yield f"the server must have two clients, and has {found['clients']}"
    for name, (kind, version) in EXPECTED.items():
        mounted = [text.replace(",", " ").split() for text in found["mounts"].get(name, [])]
        if len(mounted) != 2 or not all(one[0] == kind and version in one for one in mounted):
            yield f"{name}: not mounted by {kind} {version} on both nodes: {mounted}"
        elif name not in found["scenarios"]:
            yield f"{name}: nothing was tested"
        else:
            of_mount = found["scenarios"][name]
            judgements = (
                _race(of_mount["race"], of_mount["lost replies"], losing=name == LOSING),
                _visibility(of_mount["visibility"]),
                _drain(of_mount["drain"]),
                _sleeper(of_mount["sleeper"]),
                () if name == LOSING else _tracking(of_mount["tracking"]),
                _watched(of_mount["watched"]),
            )
            for judgement in judgements:
                yield from (f"{name}: {sentence}" for sentence in judgement)


def _race(race: Found, lost: int, *, losing: bool) -> Iterator[str]:
    if sorted(race["claimed"] + race["denied"]) != race["files"] or race["moved"] != race["files"]:
        yield "a file was given to no worker or to several"
    if losing and not (race["denied"] and lost):
        yield f"{lost} replies were lost, and {len(race['denied'])} renames denied: no test of that"
    if not losing and race["denied"]:
        yield f"renames were denied that had happened: {race['denied']}"


def _visibility(seen: dict[str, int]) -> Iterator[str]:
    for key in ALWAYS:
        if seen[key] != TIMES:
            yield f"{QUESTIONS[key]} ({key}): seen {seen[key]} of {TIMES} times"


def _drain(drain: Found) -> Iterator[str]:
    one, other = drain["ids"]
    if one != other or len(set(one)) != len(one):
        yield "the nodes that inserted the same tasks were told different ids"
    tasks = list(range(len(one)))
    done = drain["books"]["done"]
    if sorted(number for number, _, _ in done) != tasks:
        yield f"the books have {len(done)} tasks done of {len(tasks)}, or one twice"
    if any(number != of_result for number, of_result, _ in done):
        yield "a task has the result of another"
    if drain["books"]["stat"] != {"done": len(tasks)}:
        yield f"the books end with {drain['books']['stat']}"
    if drain["books"]["findings"]:
        yield f"the check of the pool finds {drain['books']['findings']}"
    left = {status: len(names) for status, names in drain["disk"].items() if status != "done"}
    if any(left.values()) or len(drain["disk"]["done"]) != len(tasks):
        yield f"on the server's disk are {len(drain['disk']['done'])} done, and {left}"
    if any(drain["exit codes"]):
        yield f"workers of node A ended with {drain['exit codes']}"
    yield from _trainings(drain, tasks)


def _trainings(drain: Found, tasks: list[int]) -> Iterator[str]:
    """Compare what the training function has noted with the books."""
    accepted = Counter((number, by) for number, _, by in drain["books"]["done"])
    trained = Counter((number, by) for number, by in drain["trained"])
    if accepted - trained:
        yield f"results of trainings that never were: {sorted(accepted - trained)}"
    repeated = {by for _, by in (trained - accepted)} - set(drain["killed"])
    if repeated:
        yield f"tasks were trained in vain by workers that were not killed: {repeated}"
    if sorted({number for number, _ in drain["trained"]}) != tasks:
        yield "some tasks were never trained"
    if len(_taken_over(drain)) != len(drain["killed"]) or not drain["killed"]:
        yield f"{len(drain['killed'])} workers were killed, {_taken_over(drain)} taken over"
    if not {by for _, _, by in drain["books"]["done"]} & set(drain["killed"]):
        yield "node B had done nothing before it was killed"


def _taken_over(drain: Found) -> list[int]:
    """Return the tasks that killed workers had begun and others have done."""
    by = {number: worker for number, _, worker in drain["books"]["done"]}
    return sorted(
        number
        for number, worker in drain["trained"]
        if worker in drain["killed"] and by.get(number) != worker
    )


def _sleeper(sleeper: Found) -> Iterator[str]:
    if sleeper["refused"] != ["LeaseLostError"] * 2:
        yield f"a worker that woke up after its lease was told {sleeper['refused']}"
    if sleeper["results"] != ["of the other"] * 2 or sleeper["stat"] != {"done": 2}:
        yield f"after it woke up the pool has {sleeper['results']}, {sleeper['stat']}"
    if sleeper["findings"]:
        yield f"after it woke up the check finds {sleeper['findings']}"


def _tracking(tracking: Found) -> Iterator[str]:
    if any(tracking["exit codes"]):
        yield f"processes that logged ended with {tracking['exit codes']}"
    numbers = range(tracking["each"])
    tags = {f"{writer}-{step}": str(step) for writer in tracking["taggers"] for step in numbers}
    if tracking["tags"] != tags:
        yield f"of {len(tags)} tags that were set at once {len(tracking['tags'])} are there"
    steps = tracking["steps"]
    runs = {writer: ["FINISHED", 1 / steps, steps, [writer]] for writer in tracking["writers"]}
    if tracking["runs"] != runs:
        yield f"runs that were logged at once read as {tracking['runs']}"
    if tracking["findings"]:
        yield f"the check of the store finds {tracking['findings']}"


def _watched(watched: list[str]) -> Iterator[str]:
    if watched != ["RUNNING", "LOST"]:
        yield f"a run on the other node, alive and then killed, was shown as {watched}"
