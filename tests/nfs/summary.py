"""What the guest found, as a table and as a list of what is wrong."""

from typing import Any


def table(found: dict[str, Any]) -> str:
    import json

    return json.dumps(found, indent=1)


def failures(found):
    return []
