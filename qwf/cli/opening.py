"""Opening what a command names: a store that has to be there, an experiment, a pool."""

from __future__ import annotations

from argparse import Namespace

from ..config import C
from ..errors import ExperimentNotFoundError, StoreNotFoundError
from ..storage.layout import parse_uri
from ..tasks.manage import TaskManager
from ..tracking.experiment import Experiment
from ..tracking.manager import ExpManager

__all__ = ["find_experiment", "open_manager", "open_pool"]


def open_manager(uri: str | None) -> ExpManager:
    """Return the manager of a store; nothing is created.

    Raises
    ------
    StoreNotFoundError
        If there is none.
    """
    root = parse_uri(C.uri if uri is None else uri)
    manager = ExpManager(root)
    if not manager.store.check_version():
        raise StoreNotFoundError(root)
    return manager


def find_experiment(manager: ExpManager, name: str) -> Experiment:
    """Return the experiment with a name, or else with an id, as a copied directory is listed."""
    try:
        return manager.get_exp(experiment_name=name, create=False)
    except ExperimentNotFoundError as error:
        try:
            return manager.get_exp(experiment_id=name, create=False)
        except ExperimentNotFoundError:
            raise error from None


def open_pool(options: Namespace) -> TaskManager:
    """Return the pool that a command names; nothing is created.

    Raises
    ------
    StoreNotFoundError, PoolNotFoundError
        If there is none.
    """
    pool = TaskManager(options.pool, uri=open_manager(options.uri).store.root)
    pool.directory.require()
    return pool
