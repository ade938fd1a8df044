"""``qwf rec show``, ``metrics``, ``params`` and ``artifacts``: one recorder in detail."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..errors import CommandLineError, MetricNotFoundError
from ..tracking.manager import ExpManager
from ..tracking.recorder import Recorder
from .listings import Listing
from .opening import open_manager
from .printing import (
    print_facts,
    print_json,
    print_lines,
    print_pairs,
    print_table,
    print_text,
    show_duration,
    show_size,
    show_time,
    stored_time,
)
from .tables import Column

__all__ = ["show_artifacts", "show_metrics", "show_params", "show_recorder"]

# A mapping with more entries is not for the eye.
_ENTRIES: Final = 20

_SESSION: Final = ("host", "user", "pid", "cwd", "argv")


def show_recorder(options: Namespace) -> int:
    """Print everything about one recorder."""
    manager = open_manager(options.uri)
    recorder = manager.find_recorder(options.id)
    document = _everything(manager, recorder)
    if options.json:
        print_json(document)
        return 0
    print_facts(_summary(document))
    for title in ("params", "metrics", "tags"):
        if document[title]:
            print_lines(["", title])
            print_facts({key: str(value) for key, value in document[title].items()}, indent="  ")
    if document["artifacts"]:
        print_lines(["", "artifacts"])
        print_text(_artifact_columns(document["artifacts"]), indent="  ")
        print_lines([f"  load one: {_how_to_load(document)}"])
    for session in document["sessions"]:
        print_lines(["", "run by"])
        print_facts(_session_facts(session), indent="  ")
    # The rest of it stands with the sessions.
    surroundings = {
        key: value for key, value in document["provenance"].items() if key not in _SESSION
    }
    if surroundings:
        print_lines(["", "provenance"])
        print_facts(dict(_flat(surroundings)), indent="  ")
    return 0


def _everything(manager: ExpManager, recorder: Recorder) -> dict[str, Any]:
    experiment = manager.get_exp(experiment_id=recorder.experiment_id, create=False)
    listing = Listing.of(manager, {experiment.id: experiment.name})
    ids = listing.attribute("run_id")
    (attributes,) = listing.take([ids.index(recorder.id)]).documents([])
    parents = zip(ids, listing.attribute("parent_id"), strict=True)
    return {
        **attributes,
        "children": [identity for identity, parent in parents if parent == recorder.id],
        "params": recorder.list_params(),
        "metrics": recorder.list_metrics(),
        "tags": recorder.list_tags(),
        "artifacts": _artifacts_of(recorder),
        "sessions": recorder.sessions(),
        "provenance": recorder.provenance(),
    }


def _summary(document: Mapping[str, Any]) -> dict[str, str]:
    start, end, duration = (document[key] for key in ("start_time", "end_time", "duration"))
    facts = {
        "recorder": document["run_id"],
        "name": document["run_name"],
        "experiment": document["experiment"],
        "status": document["status"],
        "started": start and show_time(start),
        "ended": end and f"{show_time(end)}, after {show_duration(duration)}",
        "parent": document["parent_id"],
        "children": ", ".join(document["children"]),
        "note": document["tags"].get("note"),
    }
    return {name: value for name, value in facts.items() if value}


def _session_facts(session: Mapping[str, Any]) -> dict[str, str]:
    """Return who ran a recorder and where; what tells machines and processes apart is for qwf."""
    start, end = (session.get(key) for key in ("started_at", "ended_at"))
    facts = {
        "from": start and show_time(start),
        "to": end and show_time(end),
        **{key: session.get(key) for key in _SESSION},
        "argv": shlex.join(session.get("argv", ())),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _how_to_load(document: Mapping[str, Any]) -> str:
    experiment, name = document["experiment"], next(iter(document["artifacts"]))
    return (
        f"R.get_recorder(recorder_id={document['run_id']!r}, experiment_name={experiment!r})"
        f".load_object({name!r})"
    )


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted name and text of what a nested mapping holds."""
    for key, item in value.items():
        name = f"{above}{key}"
        if isinstance(item, Mapping) and len(item) <= _ENTRIES:
            yield from _flat(item, f"{name}.")
        elif item is not None:
            yield name, _brief(item)


def _brief(item: object) -> str:
    """Return a value as text; of the list of packages, or a patch, only how much there is."""
    if isinstance(item, Mapping):
        return f"{len(item)} entries; --json shows them"
    text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    lines = text.count("\n")
    return f"{lines} lines; --json shows them" if lines else text


def show_metrics(options: Namespace) -> int:
    """Print what was logged of metrics, or only their last values."""
    recorder = open_manager(options.uri).find_recorder(options.id)
    last = recorder.list_metrics()
    for key in options.keys:
        if key not in last:
            raise MetricNotFoundError(key, recorder=recorder.id, known=list(last))
    if options.last:
        print_pairs({key: last[key] for key in options.keys or sorted(last)}, options, number=True)
        return 0
    history = recorder.metric_history(*options.keys)
    moments = (history["time"].astype("int64") // 1_000_000).tolist()
    columns = [
        Column(name="key", values=history["key"].tolist(), importance=2),
        Column(name="step", values=history["step"].tolist(), number=True, importance=1),
        Column(
            name="time", values=[stored_time(one) for one in moments], show=show_time, whole=True
        ),
        Column(name="value", values=history["value"].tolist(), number=True, importance=3),
    ]
    print_table(columns, options)
    return 0


def show_params(options: Namespace) -> int:
    """Print the params of a recorder."""
    print_pairs(open_manager(options.uri).find_recorder(options.id).list_params(), options)
    return 0


def show_artifacts(options: Namespace) -> int:
    """Print the artifacts of a recorder, or copy one and print where it is."""
    if options.to is not None and options.get is None:
        raise CommandLineError("--to says where --get copies an artifact, and --get is missing.")
    recorder = open_manager(options.uri).find_recorder(options.id)
    if options.get is not None:
        print(recorder.download_artifact(options.get, options.to or "."))
        return 0
    artifacts = _artifacts_of(recorder)
    columns = _artifact_columns(artifacts)
    if options.json or options.csv:
        digests = [one["sha256"] for one in artifacts.values()]
        columns.append(Column(name="sha256", values=digests))
    print_table(columns, options)
    return 0


def _artifacts_of(recorder: Recorder) -> dict[str, dict[str, Any]]:
    return {
        name: {"kind": one.kind, "size": one.digest.size, "sha256": one.digest.sha256}
        for name, one in sorted(recorder.artifacts().items())
    }


def _artifact_columns(artifacts: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    sizes = [one["size"] for one in artifacts.values()]
    return [
        Column(name="name", values=list(artifacts), importance=2),
        Column(name="kind", values=[one["kind"] for one in artifacts.values()]),
        Column(name="size", values=sizes, show=show_size, number=True, importance=1),
    ]
