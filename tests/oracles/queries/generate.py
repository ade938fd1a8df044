"""Write what mongomock finds for random queries of random documents: ``generate.py OUT.json.gz``.

Needs mongomock and nothing of qwf. Dates are written as ``{"$datetime": ISO}``.
"""

from __future__ import annotations

import datetime
import gzip
import importlib.metadata
import itertools
import json
import random
import sys
from typing import Any

import mongomock

DOCUMENTS, QUERIES = 60, 2000
STATUSES = ("waiting", "running", "part_done", "done", "failed")
DAYS = [datetime.datetime(2020, 1, day) for day in (1, 2, 3)]
# Without 0 and 1, which mongomock takes for False and True; MongoDB does not.
LEAVES = [None, True, False, 2, 3, 2.0, 2.5, -2, "", "x", "y", "2", *DAYS]
NAMES = ("a", "b", "c")


def value(draw: random.Random, depth: int) -> Any:
    kind = draw.random()
    if depth == 0 or kind < 0.4:
        return draw.choice(LEAVES)
    if kind < 0.7:
        return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
    return {name: value(draw, depth - 1) for name in draw.sample(NAMES, draw.randrange(1, 3))}


def document(draw: random.Random, number: int) -> dict[str, Any]:
    found = {
        "_id": f"{number:024x}",
        "status": draw.choice(STATUSES),
        "filter": {name: value(draw, 3) for name in draw.sample(NAMES, 3)},
    }
    if draw.random() < 0.5:
        found["priority"] = draw.randrange(2, 5)
    if draw.random() < 0.4:
        found["res"] = value(draw, 1)
    return found


def inside(found: Any) -> list[tuple[str, Any]]:
    """Return the paths that lead into a document, with what is there."""
    if isinstance(found, dict):
        parts = [(key, item) for key, item in found.items()]
    elif isinstance(found, list):
        parts = [(str(number), item) for number, item in enumerate(found)]
    else:
        return []
    return [
        *parts,
        *((f"{key}.{path}", item) for key, one in parts for path, item in inside(one)),
    ]


def condition(draw: random.Random, documents: list[dict[str, Any]]) -> dict[str, Any]:
    path, there = draw.choice([one for one in inside(draw.choice(documents)) if one[0] != "_id"])
    if draw.random() < 0.3:  # a path that skips the number of an item, or leads nowhere
        parts = path.split(".")
        parts[-1 if len(parts) < 3 else draw.randrange(1, len(parts))] = draw.choice(
            (*NAMES, "0", "1")
        )
        path = ".".join(parts) if path.startswith("filter.") else path
    return {path: there if there != [] and draw.random() < 0.25 else operators(draw, there)}


def operators(draw: random.Random, there: Any) -> dict[str, Any]:
    wanted = there if draw.random() < 0.5 else value(draw, 1)
    wanted = "x" if wanted == [] else wanted  # which mongomock does not find in a list
    leaf = draw.choice(LEAVES[1:]) if wanted is None or isinstance(wanted, (dict, list)) else wanted
    one = leaf if isinstance(wanted, list) else wanted
    choices = {
        "$eq": wanted,
        "$ne": wanted,
        "$in": [one, draw.choice(LEAVES)],
        "$nin": [one, draw.choice(LEAVES)],
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), leaf),
    }
    if draw.random() < 0.1:
        return {"$exists": True}  # "$nor" tests the opposite
    names = draw.sample(sorted(choices), draw.choice([1, 1, 1, 2]))
    return {name: choices[name] for name in names}


def query(draw: random.Random, documents: list[dict[str, Any]]) -> dict[str, Any]:
    kind = draw.random()
    if kind < 0.7:
        return condition(draw, documents)
    if kind < 0.75:
        some = draw.sample([one["_id"] for one in documents], 3)
        return {"_id": draw.choice([some[0], {"$in": some}, {"$nin": some}, {"$ne": some[0]}])}
    parts = [query(draw, documents) for _ in range(draw.randrange(1, 3))]
    if kind < 0.85:
        return dict(itertools.chain(*(part.items() for part in parts)))
    return {draw.choice(["$and", "$or", "$nor"]): parts}


def as_json(found: Any) -> Any:
    if isinstance(found, datetime.datetime):
        return {"$datetime": found.isoformat()}
    raise TypeError(found)


def main(out: str) -> None:
    draw = random.Random(20261122)
    documents = [document(draw, number) for number in range(DOCUMENTS)]
    collection = mongomock.MongoClient().db.tasks
    collection.insert_many(documents)
    cases = []
    while len(cases) < QUERIES:
        asked = query(draw, documents)
        try:
            found = sorted(int(one["_id"], 16) for one in collection.find(asked))
        except (TypeError, ValueError, NotImplementedError, mongomock.OperationFailure) as error:
            cases.append({"query": asked, "error": type(error).__name__})
            continue
        cases.append({"query": asked, "found": found})
    text = json.dumps(
        {
            "mongomock": importlib.metadata.version("mongomock"),
            "documents": documents,
            "cases": cases,
        },
        default=as_json,
        separators=(",", ":"),
    )
    with open(out, "wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(text.encode())


if __name__ == "__main__":
    main(sys.argv[1])
