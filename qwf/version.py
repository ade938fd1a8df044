"""The release number, and the version of every disk format that this release writes and reads."""

from __future__ import annotations

from typing import Final

__all__ = [
    "EXPERIMENT_FORMAT",
    "FRAME_FORMAT",
    "INDEX_FORMAT",
    "JOURNAL_FORMAT",
    "POOL_FORMAT",
    "PROVENANCE_FORMAT",
    "RECORDER_FORMAT",
    "STORE_FORMAT",
    "__version__",
]

__version__: Final = "0.1.0"

# Integers, apart from the release number: a release that changes no format changes none of them.
STORE_FORMAT: Final = 1  # qwf.json
EXPERIMENT_FORMAT: Final = 1  # experiment.json
RECORDER_FORMAT: Final = 1  # recorder.json
JOURNAL_FORMAT: Final = 2  # metrics.*.journal; 2 has entries with many values
FRAME_FORMAT: Final = 1  # the "qwf" entry in the metadata of a parquet artifact
INDEX_FORMAT: Final = 1  # index/: derived, so an unknown version is written anew
POOL_FORMAT: Final = 1  # tasks/: every file of a pool
PROVENANCE_FORMAT: Final = 1  # provenance/*.json
