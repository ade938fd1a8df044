"""A pool on a filesystem that lies: every task is done once, and none is left behind.

Each test runs twice, with the faults between qwf and the system, and through a kernel mount where
one can be made (`test_faulty_mount.py`). Two counts are kept that know nothing of each other:
lines that the tasks write when they run, and the names that are in the pool at the end.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
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


def drain(children: Children, *workers: Node) -> None:
    for seed, node in enumerate(workers):
        children.add(lambda node=node, seed=seed: node.work(seed=seed))
    assert children.exit_codes() == [0] * len(workers)


def lost_replies(code: int) -> list[Rule]:
    """A tenth of all renames and links happens, and the answer says that it failed."""
    link = errno.EEXIST if code == errno.ENOENT else code  # the server's answer to a second try
    return [
        Fault("rename", error=code, after=True, chance=0.1),
        Fault("link", error=link, after=True, chance=0.1),
    ]


# --- whole drains ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", HAPPENED, ids=errno.errorcode.get)
def test_renames_and_links_that_happened_may_report_errors(
    code: int, nodes: Nodes, children: Children
) -> None:
    a, b = nodes.add("a", *lost_replies(code)), nodes.add("b")
    with a.entered():
        made = TaskManager(POOL, uri=a.store).create_task(definitions(N))
    assert len(set(made)) == N
    drain(children, a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_racing_submitters_insert_each_task_once_although_links_lie(
    nodes: Nodes, children: Children
) -> None:
    a, b = nodes.add("a", *lost_replies(errno.EIO)), nodes.add("b")

    def submit(node: Node, seed: int) -> None:
        with node.entered(seed=seed):
            TaskManager(POOL, uri=node.store).create_task(definitions(N))

    for seed, node in enumerate((a, a, b, b)):
        children.add(lambda node=node, seed=seed: submit(node, seed))
    assert children.exit_codes() == [0, 0, 0, 0]
    drain(children, a, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


@pytest.mark.parametrize("rule", [StaleListing(calls=3), StaleListing(seconds=0.5)], ids=str)
def test_listings_may_be_old(rule: Rule, nodes: Nodes, children: Children) -> None:
    a, b = nodes.add("a", rule), nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    drain(children, a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_names_may_be_unseen_that_were_looked_for_too_early(
    nodes: Nodes, children: Children
) -> None:
    a, b = nodes.add("a", LateNames()), nodes.add("b")
    manager = TaskManager(POOL, uri=b.store)
    with a.entered():
        early = TaskManager(POOL, uri=a.store)
        assert early.create_task(definitions(N), dry_run=True)  # looks for all of the names
    manager.create_task(definitions(N))
    drain(children, a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_files_may_be_stale_when_they_are_read(nodes: Nodes, children: Children) -> None:
    rules = [Fault("open", "*/running/*", error=errno.ESTALE, chance=0.5), *lost_replies(errno.EIO)]
    a, b = nodes.add("a", *rules), nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    drain(children, a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_calls_may_be_slow_on_one_node(nodes: Nodes, children: Children) -> None:
    slow = [Fault(kind, delay_seconds=0.05, chance=0.2) for kind in ("rename", "link", "fsync")]
    a, b = nodes.add("a", *slow), nodes.add("b")
    TaskManager(POOL, uri=a.store).create_task(definitions(N))
    drain(children, a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


@pytest.mark.parametrize(
    ("operation", "code"), [("write", errno.ENOSPC), ("fsync", errno.EIO)], ids=str
)
def test_a_task_of_which_the_result_cannot_be_written_is_run_again(
    operation: str, code: int, nodes: Nodes, children: Children
) -> None:
    a = nodes.add("a", Fault(operation, "*/res/*", error=code, count=2))
    b = nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    drain(children, a)
    nodes.assert_drained(N)
    assert nodes.noted("ran").total() == N + 2


@pytest.mark.parametrize("status", ["done", "waiting", "running", "def", "res"])
def test_directories_may_fail_to_sync(status: str, nodes: Nodes, children: Children) -> None:
    a = nodes.add("a", Fault("fsync", f"*/{status}", error=errno.EIO, count=2))
    b = nodes.add("b")
    TaskManager(POOL, uri=b.store).create_task(definitions(N))
    drain(children, a)
    nodes.assert_drained(N)


@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_faults_on_two_nodes_loses_nothing(
    seed: int, nodes: Nodes, children: Children
) -> None:
    lies: list[Rule] = [
        Fault(kind, error=code, after=True, chance=0.02)
        for kind in ("rename", "link", "unlink")
        for code in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
    ]
    lies += [
        Fault("rename", error=errno.ENOENT, after=True, chance=0.05),
        Fault("rename", error=errno.EIO, chance=0.02),
        Fault("open", "*/def/*", error=errno.ESTALE, chance=0.1),
        Fault("open", "*/running/*", error=errno.ESTALE, chance=0.1),
        Fault("list", error=errno.EIO, chance=0.01),
        LateNames(),
    ]
    a, b = nodes.add("a", *lies, seed=seed), nodes.add("b", *lies, seed=seed + 1)
    TaskManager(POOL, uri=nodes.store).create_task(definitions(N))
    for number, node in enumerate((a, a, b, b)):
        children.add(lambda node=node, number=number: node.work(seed=10 * seed + number))
    assert children.exit_codes() == [0, 0, 0, 0]
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


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


@pytest.mark.parametrize("code", [*HAPPENED, errno.EEXIST], ids=errno.errorcode.get)
def test_a_creation_that_happened_may_report_an_error(code: int, nodes: Nodes) -> None:
    a = nodes.add("a", Fault("link", error=code, after=True))
    with a.entered():
        there = TaskManager(POOL, uri=a.store)
        assert there.create_task(definitions(3)) == there.create_task(definitions(3))
    assert [len(ids) for ids in nodes.tokens().values()] == [3, 0, 0, 0, 0]
    assert TaskManager(POOL, uri=nodes.store).check() == []


def test_tasks_that_a_full_disk_refuses_are_not_half_there(nodes: Nodes) -> None:
    a = nodes.add("a", Fault("write", "*/tmp/*", error=errno.ENOSPC, skip=2))
    with a.entered():
        there = TaskManager(POOL, uri=a.store)
        there.create_task(definitions(1))
        with pytest.raises(WriteError):
            there.create_task(definitions(4))
    manager = TaskManager(POOL, uri=nodes.store)
    assert manager.check() == []
    manager.create_task(definitions(4))
    assert len(nodes.tokens()["waiting"]) == 4


# --- clocks and heartbeats -------------------------------------------------------------------


def test_clocks_that_differ_by_ten_minutes_change_neither_order_nor_leases(
    nodes: Nodes, children: Children
) -> None:
    early, late = nodes.add("early"), nodes.add("late")
    order = []
    for number, (node, clock) in enumerate([(late, 600), (early, -600), (late, 600)]):
        with node.entered(clock=clock):
            order += TaskManager(POOL, uri=node.store).create_task([{"number": number}])
    manager = TaskManager(POOL, uri=nodes.store)
    assert [task["_id"] for task in manager.query()] == order

    slow = Holder(children, early, clock=-600, lease=60)
    fast = Holder(children, late, clock=600, lease=60)
    assert {slow.claims(), fast.claims()} == set(order[:2])
    for node, clock in ((early, 600), (late, -600), (late, 600)):
        with node.entered(clock=clock):
            there = TaskManager(POOL, uri=node.store)
            assert [there.recover(), there.recover(), there.reset_waiting()] == [0, 0, 0]
    slow.commits()
    fast.commits()
    assert children.exit_codes() == [0, 0]
    early.work(clock=-600)
    nodes.assert_drained(3)
    nodes.assert_ran_once(3)


def test_workers_of_which_the_clocks_differ_drain_a_pool(nodes: Nodes, children: Children) -> None:
    a, b = nodes.add("a"), nodes.add("b")
    TaskManager(POOL, uri=nodes.store).create_task(definitions(N))
    for node, clock in ((a, 600), (a, 600), (b, -600), (b, -600)):
        children.add(lambda node=node, clock=clock: node.work(clock=clock, lease=30))
    assert children.exit_codes() == [0, 0, 0, 0]
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)


def test_heartbeats_that_fail_for_less_than_the_lease_cost_nothing(
    nodes: Nodes, children: Children
) -> None:
    a = nodes.add("a", Fault("utime", "*/workers/*", error=errno.EIO, count=2))
    b = nodes.add("b")
    TaskManager(POOL, uri=nodes.store).create_task(definitions(1))
    holder = Holder(children, a, lease=10)  # a heartbeat every 2 s
    assert holder.claims()
    (heart,) = (nodes.store / "tasks" / POOL / "workers").glob("*")
    first = heart.stat().st_mtime_ns
    with b.entered():
        there = TaskManager(POOL, uri=b.store)
        while heart.stat().st_mtime_ns == first:
            assert there.recover() == 0
    holder.commits()
    assert children.exit_codes() == [0]
    nodes.assert_drained(1)
    nodes.assert_ran_once(1)


def test_a_worker_of_which_all_heartbeats_fail_loses_its_task_and_does_no_harm(
    nodes: Nodes, children: Children
) -> None:
    a = nodes.add("a", Fault("utime", "*/workers/*", error=errno.EIO))
    b = nodes.add("b")
    TaskManager(POOL, uri=nodes.store).create_task(definitions(1))
    holder = Holder(children, a, lease=1)
    assert holder.claims()
    with b.entered():
        there = TaskManager(POOL, uri=b.store)
        while not there.recover():
            pass
    b.work()
    nodes.assert_drained(1)
    holder.commits()
    assert children.exit_codes() == [1]
    nodes.assert_drained(1)


def test_a_server_that_sets_no_times_for_one_node_still_has_its_pool_drained(
    nodes: Nodes, children: Children
) -> None:
    a, b = nodes.add("a", Fault("utime", error=errno.EPERM)), nodes.add("b")
    with a.entered():
        TaskManager(POOL, uri=a.store).create_task(definitions(N))
    drain(children, a, a, b, b)
    nodes.assert_drained(N)
    nodes.assert_ran_once(N)
