"""A pool on a filesystem that lies: every task is done once, and none is left behind.

Each test runs twice, with the faults between qwf and the system, and through a kernel mount where
one can be made (`test_faulty_mount.py`). Two counts are kept that know nothing of each other:
lines that the tasks write when they run, and the names that are in the pool at the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import Children
from faultfs import Rule, reason_against
from lying_nodes import POOL, Holder, Node, Nodes, definitions

from qwf.errors import WriteError
from qwf.tasks.manage import TaskManager
from qwf.testing.faults import Fault, LateNames, StaleListing

pytestmark = pytest.mark.stress

N = 40
HAPPENED = [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT]


@pytest.fixture(params=["fsio", "mount"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Nodes]:
    kernel = request.param == "mount"
    if kernel and (reason := reason_against()):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        yield Nodes(tmp_path, stack, kernel=kernel)


@pytest.fixture
def holds() -> Iterator[Callable[..., Holder]]:
    """``holds(node, ...)`` starts a process that holds a task; none is left at the end."""
    holders: list[Holder] = []

    def hold(node: Node, **options: float) -> Holder:
        holders.append(Holder(node, **options))
        return holders[-1]

    yield hold
    for holder in holders:
        holder.commits()


def together(*calls: Callable[[], object]) -> list[int]:
    """Make each call in a process of its own, all at once; return the exit codes."""
    started = Children()
    for call in calls:
        started.add(call)
    return started.exit_codes()


def drain(*workers: Node, seed: int = 0) -> None:
    calls = [partial(node.work, seed=10 * seed + at) for at, node in enumerate(workers)]
    assert together(*calls) == [0] * len(workers)


def lost_replies(code: int) -> list[Rule]:
    """A tenth of all renames and links happens, and the answer says that it failed."""
    link = errno.EEXIST if code == errno.ENOENT else code  # the server's answer to a second try
    return [
        Fault("rename", error=code, after=True, chance=0.1),
        Fault("link", error=link, after=True, chance=0.1),
    ]


# --- whole drains ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", HAPPENED, ids=errno.errorcode.get)
def test_renames_and_links_that_happened_may_report_errors(code: int, nodes: Nodes) -> None:
    a, b = nodes.add("a", *lost_replies(code)), nodes.add("b")
    with a.entered():
        made = TaskManager(POOL, uri=a.store).create_task(definitions(N))
    assert len(set(made)) == N
    drain(a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_racing_submitters_insert_each_task_once_although_links_lie(nodes: Nodes) -> None:
    a, b = nodes.add("a", *lost_replies(errno.EIO)), nodes.add("b")

    def submit(node: Node, seed: int) -> None:
        with node.entered(seed=seed):
            TaskManager(POOL, uri=node.store).create_task(definitions(N))

    calls = [partial(submit, node, seed) for seed, node in enumerate((a, a, b, b))]
    assert together(*calls) == [0, 0, 0, 0]
    drain(a, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


# As on NFS 3, where a listing may be old for ever, but for a client that sets the directory's time;
# and where that is refused.
OLD_FOR_EVER: list[Rule] = [StaleListing(calls=10**6)]
OLD_FOR_A_WHILE: list[Rule] = [
    StaleListing("*/pool/*", seconds=0.5),
    Fault("utime", "*/pool/*", error=errno.EPERM),
]


@pytest.mark.parametrize("rules", [OLD_FOR_EVER, OLD_FOR_A_WHILE], ids=["ever", "while"])
def test_listings_may_be_old(rules: list[Rule], nodes: Nodes) -> None:
    a, b = nodes.add("a", *rules), nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    drain(a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_names_may_be_unseen_that_were_looked_for_too_early(nodes: Nodes) -> None:
    a, b = nodes.add("a", LateNames()), nodes.add("b")
    manager = TaskManager(POOL, uri=b.store)
    with a.entered():
        early = TaskManager(POOL, uri=a.store)
        assert early.create_task(definitions(N), dry_run=True)  # looks for all of the names
    manager.create_task(definitions(N))
    drain(a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_files_may_be_stale_when_they_are_read(nodes: Nodes) -> None:
    rules = [Fault("open", "*/running/*", error=errno.ESTALE, chance=0.5), *lost_replies(errno.EIO)]
    a, b = nodes.add("a", *rules), nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    drain(a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_calls_may_be_slow_on_one_node(nodes: Nodes) -> None:
    slow = [Fault(kind, delay_seconds=0.05, chance=0.2) for kind in ("rename", "link", "fsync")]
    a, b = nodes.add("a", *slow), nodes.add("b")
    TaskManager(POOL, uri=a.store).create_task(definitions(N))
    drain(a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


@pytest.mark.parametrize(
    ("operation", "code"), [("write", errno.ENOSPC), ("fsync", errno.EIO)], ids=str
)
def test_a_task_of_which_the_result_cannot_be_written_is_run_again(
    operation: str, code: int, nodes: Nodes
) -> None:
    a = nodes.add("a", Fault(operation, "*/res/*", error=code))
    b = nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    assert together(a.work, a.work) == [1, 1]  # who cannot write gives its task back and stops
    drain(b)
    nodes.assert_drained(N)
    assert nodes.noted("ran").total() == N + 2


@pytest.mark.parametrize("status", ["done", "waiting", "running", "def", "res"])
def test_directories_may_fail_to_sync(status: str, nodes: Nodes) -> None:
    a = nodes.add("a", Fault("fsync", f"*/{status}", error=errno.EIO, count=2))
    b = nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    together(a.work, a.work)
    drain(b)
    nodes.assert_drained(N)


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_faults_on_two_nodes_loses_nothing(seed: int, nodes: Nodes) -> None:
    lies: list[Rule] = [
        Fault(kind, error=code, after=True, chance=0.02)
        for kind in ("rename", "link", "unlink")
        for code in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
    ]
    lies += [
        Fault("rename", error=errno.ENOENT, after=True, chance=0.05),
        Fault("rename", "*/running/*", error=errno.EIO, chance=0.02),
        Fault("open", "*/def/*", error=errno.ESTALE, chance=0.1),
        Fault("open", "*/running/*", error=errno.ESTALE, chance=0.1),
        Fault("list", error=errno.EIO, chance=0.01),
        LateNames(),
        StaleListing(calls=10**6),
    ]
    a, b = nodes.add("a", *lies, seed=seed), nodes.add("b", *lies, seed=seed + 1)
    TaskManager(POOL, uri=nodes.store).create_task(definitions(N))
    drain(a, a, b, b, seed=seed)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def all_that_can_be_done(manager: TaskManager) -> list[object]:
    """Call what changes a pool; return all that was answered, and what is there then."""
    ids = manager.create_task(definitions(12))
    said: list[object] = [ids == manager.create_task(definitions(12))]
    manager.prioritize({"_id": ids[7]}, 5)
    first = manager.fetch_task()
    said += [first["_id"] == ids[7], manager.fail_task(first, "no")]
    said += [manager.fail_task(manager.fetch_task({"_id": ids[7]}), "no"), manager.task_stat()]
    said += [manager.fail_task(manager.fetch_task({"_id": ids[7]}), "no"), manager.task_stat()]
    said += [manager.retry(), manager.task_stat()]
    for identity in ids[:3]:
        manager.commit_task_res(manager.fetch_task({"_id": identity}), {"part": 1}, "part_done")
    manager.return_task(manager.fetch_task({"_id": ids[0]}, "part_done"))
    manager.commit_task_res(manager.fetch_task({"_id": ids[0]}, "part_done"), {"whole": 2})
    held = manager.fetch_task({"_id": ids[4]})
    manager.prioritize(held, 9)
    manager.commit_task_res(held, {"whole": 3})
    said += [manager.reset_status({"_id": ids[1]}, "waiting"), manager.reset_waiting()]
    said += [
        manager.remove({"_id": {"$in": ids[8:10]}}),
        manager.replace_task({"_id": ids[10]}, {}),
    ]
    said += [manager.recover(), manager.task_stat()]
    return said + [(task["def"], task["status"], task.get("res")) for task in manager.query()]


# After ENOENT a task may come later than the next one: most often somebody else has taken it.
@pytest.mark.parametrize("code", [errno.EIO, errno.ETIMEDOUT], ids=errno.errorcode.get)
def test_lost_replies_change_nothing_of_what_is_done_to_a_pool(code: int, nodes: Nodes) -> None:
    rules: list[Rule] = [
        Fault(kind, error=code, after=True, chance=0.3) for kind in ("rename", "link", "unlink")
    ]
    rules += [LateNames(), StaleListing(calls=10**6)]
    expected = all_that_can_be_done(TaskManager("honest", uri=nodes.store))
    a = nodes.add("a", *rules, seed=code)
    with a.entered(seed=code):
        assert all_that_can_be_done(TaskManager(POOL, uri=a.store)) == expected
    assert len([*(nodes.store / "tasks" / POOL / "def").iterdir()]) == 10
    nodes.assert_clean()


def test_an_attempt_that_fails_is_counted_once_although_replies_are_lost(nodes: Nodes) -> None:
    a, b = nodes.add("a", *lost_replies(errno.EIO)), nodes.add("b", *lost_replies(errno.ENOENT))
    manager = TaskManager(POOL, uri=nodes.store)
    manager.create_task(definitions(N))
    assert together(a.fail, a.fail, b.fail, b.fail) == [1, 1, 1, 1]
    assert nodes.noted("ran") == {str(number): 3 for number in range(N)}
    assert manager.task_stat() == {"failed": N}


# --- one task --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        Fault("write", "*/res/*", error=errno.ENOSPC),
        Fault("fsync", "*/res/*", error=errno.EIO),
        Fault("fsync", "*/res", error=errno.EIO),
        Fault("open", "*/res/*", error=errno.ENOSPC),
        Fault("rename", "*/done/*", error=errno.EIO),
        Fault("rename", "*/done/*", error=errno.ENOSPC),
    ],
    ids=str,
)
def test_a_result_that_was_refused_leaves_the_task_as_it_was(rule: Rule, nodes: Nodes) -> None:
    a = nodes.add("a", rule)
    manager = TaskManager(POOL, uri=nodes.store)
    (identity,) = manager.create_task(definitions(1))
    with a.entered():
        there = TaskManager(POOL, uri=a.store)
        task = there.fetch_task()
        assert task is not None
        with pytest.raises(WriteError):
            there.commit_task_res(task, {"twice": 0})
    found = manager.re_query(identity)
    assert (found["status"], found.get("res")) == ("running", None)
    assert list((nodes.store / "tasks" / POOL / "res").iterdir()) == []
    there.return_task(task)
    again = manager.fetch_task()
    assert again is not None
    manager.commit_task_res(again, {"twice": 0})
    nodes.assert_drained(1)


def test_a_commit_that_failed_can_be_tried_again(nodes: Nodes) -> None:
    a = nodes.add("a", Fault("fsync", "*/res/*", error=errno.EIO, count=1))
    TaskManager(POOL, uri=nodes.store).create_task(definitions(1))
    with a.entered():
        there = TaskManager(POOL, uri=a.store)
        task = there.fetch_task()
        with pytest.raises(WriteError):
            there.commit_task_res(task, {"twice": 0})
        there.commit_task_res(task, {"twice": 0})
    nodes.assert_drained(1)


def test_a_commit_of_which_the_reply_is_lost_counts_although_the_listing_is_old(
    nodes: Nodes,
) -> None:
    a = nodes.add(
        "a",
        StaleListing("*/done", calls=2),
        Fault("utime", "*/done", error=errno.EPERM),
        Fault("rename", "*/done/*", error=errno.EIO, after=True),
    )
    TaskManager(POOL, uri=nodes.store).create_task(definitions(5))
    with a.entered():
        there = TaskManager(POOL, uri=a.store)
        for task in there.task_fetcher_iter():
            there.commit_task_res(task, a.run(task["def"]))
    nodes.assert_drained(5)
    nodes.assert_ran_once(5)


@pytest.mark.parametrize("place", ["running", "res"])
def test_a_task_that_cannot_be_read_stops_the_worker_and_is_tried_again(
    place: str, nodes: Nodes
) -> None:
    manager = TaskManager(POOL, uri=nodes.store)
    manager.create_task(definitions(1))
    manager.commit_task_res(manager.fetch_task(), {"twice": 0}, "part_done")
    a = nodes.add("a", Fault("open", f"*/{place}/*", error=errno.EIO, count=1))
    with a.entered():
        there = TaskManager(POOL, uri=a.store)
        with pytest.raises(OSError, match="Input/output error"):
            there.fetch_task(status="part_done")
        task = there.fetch_task(status="part_done")
        assert task is not None
        assert task["res"] == {"twice": 0}
        there.commit_task_res(task, {"twice": 0})
    nodes.assert_drained(1)


@pytest.mark.parametrize("code", [*HAPPENED, errno.EEXIST], ids=errno.errorcode.get)
def test_a_creation_that_happened_may_report_an_error(code: int, nodes: Nodes) -> None:
    a = nodes.add("a", Fault("link", error=code, after=True))
    with a.entered():
        there = TaskManager(POOL, uri=a.store)
        assert there.create_task(definitions(3)) == there.create_task(definitions(3))
    assert [len(ids) for ids in nodes.tokens().values()] == [3, 0, 0, 0, 0]
    nodes.assert_clean()


def test_tasks_that_a_full_disk_refuses_are_not_half_there(nodes: Nodes) -> None:
    a = nodes.add("a", Fault("write", "*/pool/tmp/*", error=errno.ENOSPC, skip=2))
    with a.entered():
        there = TaskManager(POOL, uri=a.store)
        there.create_task(definitions(1))
        with pytest.raises(WriteError):
            there.create_task(definitions(4))
    manager = TaskManager(POOL, uri=nodes.store)
    nodes.assert_clean()
    manager.create_task(definitions(4))
    assert len(nodes.tokens()["waiting"]) == 4


# --- clocks and heartbeats -------------------------------------------------------------------


def failing_heartbeats(count: int | None) -> list[Rule]:
    """So many heartbeats, or all, can neither renew the worker's file nor replace it."""
    return [
        Fault("utime", "*/workers/*", error=errno.EIO, count=count),
        Fault("rename", "*/workers/*", error=errno.EIO, skip=1, count=count),
    ]


def test_clocks_that_differ_by_ten_minutes_change_neither_order_nor_leases(
    nodes: Nodes, holds: Callable[..., Holder]
) -> None:
    early, late = nodes.add("early"), nodes.add("late")
    order = []
    for number, (node, clock) in enumerate([(late, 600), (early, -600), (late, 600)]):
        with node.entered(clock=clock):
            order += TaskManager(POOL, uri=node.store).create_task([{"number": number}])
    manager = TaskManager(POOL, uri=nodes.store)
    assert [task["_id"] for task in manager.query()] == order

    slow = holds(early, clock=-600, lease=60)
    fast = holds(late, clock=600, lease=60)
    assert [slow.held, fast.held] == order[:2]
    for node, clock in ((early, 600), (late, -600), (late, 600)):
        with node.entered(clock=clock):
            there = TaskManager(POOL, uri=node.store)
            assert [there.recover(), there.recover(), there.reset_waiting()] == [0, 0, 0]
    assert slow.commits()
    assert fast.commits()
    early.work(clock=-600)
    nodes.assert_drained(3)
    nodes.assert_ran_once(3)


def test_workers_of_which_the_clocks_differ_drain_a_pool(nodes: Nodes) -> None:
    a, b = nodes.add("a"), nodes.add("b")
    TaskManager(POOL, uri=nodes.store).create_task(definitions(N))
    clocks = [(a, 600), (a, 600), (b, -600), (b, -600)]
    calls = [partial(node.work, clock=clock, lease=30) for node, clock in clocks]
    assert together(*calls) == [0, 0, 0, 0]
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_heartbeats_that_fail_for_less_than_the_lease_cost_nothing(
    nodes: Nodes, holds: Callable[..., Holder]
) -> None:
    a = nodes.add("a", *failing_heartbeats(2))
    b = nodes.add("b")
    TaskManager(POOL, uri=nodes.store).create_task(definitions(1))
    holder = holds(a, lease=6)  # with a heartbeat every 1.2 s
    heart = nodes.heartbeat()
    first = heart.stat().st_mtime_ns
    with b.entered():
        there = TaskManager(POOL, uri=b.store)
        while heart.stat().st_mtime_ns == first:
            assert there.recover() == 0
    assert holder.commits()
    nodes.assert_drained(1)
    nodes.assert_ran_once(1)


def test_a_worker_of_which_all_heartbeats_fail_loses_its_task_and_does_no_harm(
    nodes: Nodes, holds: Callable[..., Holder]
) -> None:
    a = nodes.add("a", *failing_heartbeats(None))
    b = nodes.add("b")
    TaskManager(POOL, uri=nodes.store).create_task(definitions(1))
    holder = holds(a, lease=1)
    with b.entered():
        there = TaskManager(POOL, uri=b.store)
        while not there.recover():
            pass
    b.work()
    nodes.assert_drained(1)
    assert not holder.commits()
    nodes.assert_drained(1)


def test_a_worker_that_finds_nothing_else_takes_over_what_a_dead_node_has_left(
    nodes: Nodes, holds: Callable[..., Holder]
) -> None:
    a, b = nodes.add("a", *lost_replies(errno.EIO)), nodes.add("b", *lost_replies(errno.ENOENT))
    TaskManager(POOL, uri=nodes.store).create_task(definitions(3))
    holds(a).is_killed()
    long_ago = nodes.heartbeat().stat().st_mtime - 1000
    os.utime(nodes.heartbeat(), (long_ago, long_ago))
    drain(b)
    nodes.assert_drained(3)
    nodes.assert_ran_once(3)


def test_a_server_that_sets_no_times_for_one_node_still_has_its_pool_drained(nodes: Nodes) -> None:
    a, b = nodes.add("a", Fault("utime", error=errno.EPERM)), nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    drain(a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)
