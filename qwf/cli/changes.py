"""``qwf rec tag``, ``delete`` and ``restore``: what changes a recorder."""

from __future__ import annotations

from argparse import Namespace

from ..errors import CommandLineError
from ..tracking import deletion, trash
from .opening import open_manager
from .printing import command_line, print_pairs

__all__ = ["delete_recorders", "restore_recorders", "tag_recorder"]


def tag_recorder(options: Namespace) -> int:
    """Set and delete tags, and print all that there are then."""
    wanted = dict(options.tags)
    wanted |= {} if options.note is None else {"note": options.note}
    wanted |= {f"mark.{label}": "1" for label in options.mark}
    both = sorted(wanted.keys() & set(options.delete))
    if both:
        raise CommandLineError(f"tags {both} were to be both set and deleted. Nothing was changed.")
    recorder = open_manager(options.uri).find_recorder(options.id)
    if options.delete:  # first what may be refused
        recorder.delete_tags(*options.delete)
    if wanted:
        recorder.set_tags(**wanted)
    print_pairs(recorder.list_tags(), options)
    return 0


def delete_recorders(options: Namespace) -> int:
    """Move recorders to the trash, and say how they come back."""
    manager = open_manager(options.uri)
    found = dict.fromkeys(manager.find_recorder(identity) for identity in options.ids)
    named = [(recorder.experiment_id, str(recorder.id)) for recorder in found]
    deleted = deletion.delete_recorders(manager.store, named)
    for identity in deleted:
        print(f"Moved to the trash: recorder {identity}")
    print(f"To have them back: {command_line(options, 'rec', 'restore', *deleted)}")
    return 0


def restore_recorders(options: Namespace) -> int:
    """Bring recorders back from the trash."""
    for entry in trash.restore_recorders(open_manager(options.uri).store, options.ids):
        print(f"Restored: recorder {entry.recorder_id}")
    return 0
