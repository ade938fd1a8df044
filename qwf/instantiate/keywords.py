"""Which keywords a callable takes."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["accepted_keywords", "auto_filter_kwargs", "signature_of"]

T = TypeVar("T")

_log = logging.getLogger("qwf.instantiate")


def signature_of(func: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature, or None for a callable written in C that has none."""
    try:
        return inspect.signature(func)
    except (TypeError, ValueError):
        return None


def keyword_names(signature: inspect.Signature) -> list[str]:
    """List the parameters that can be given by keyword."""
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name for name, parameter in signature.parameters.items() if parameter.kind in by_keyword
    ]


def takes_any_keyword(signature: inspect.Signature) -> bool:
    """Whether the signature ends with ``**kwargs``."""
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def accepted_keywords(func: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """Return those of the names that `func` takes as keywords, in their order.

    Keyword-only parameters count, and ``**kwargs`` takes all. Of a callable without a signature
    nothing is known, and none is returned.

    Examples
    --------
    >>> def fit(dataset, *, reweighter=None): ...
    >>> accepted_keywords(fit, ["reweighter", "epochs"])
    ['reweighter']
    """
    signature = signature_of(func)
    if signature is None:
        return []
    if takes_any_keyword(signature):
        return list(names)
    known = keyword_names(signature)
    return [name for name in names if name in known]


def auto_filter_kwargs(func: Callable[..., T], warning: bool = True) -> Callable[..., T]:
    """Return a function that calls `func` without the keywords it does not take.

    Parameters
    ----------
    func : callable
        A function, method, class or object; one without a signature gets all keywords.
    warning : bool, default True
        Log a warning that names each keyword left out.

    Examples
    --------
    >>> def fit(dataset, *, reweighter=None):
    ...     return dataset, reweighter
    >>> auto_filter_kwargs(fit, warning=False)("prices", reweighter=2, epochs=3)
    ('prices', 2)
    """
    signature = signature_of(func)

    @functools.wraps(func)
    def filtered(*args: Any, **kwargs: Any) -> T:
        if signature is None or takes_any_keyword(signature):
            return func(*args, **kwargs)
        known = keyword_names(signature)
        for name in [name for name in kwargs if name not in known]:
            del kwargs[name]
            if warning:
                called = getattr(func, "__qualname__", type(func).__name__)
                _log.warning("%s does not take %r: it is left out", called, name)
        return func(*args, **kwargs)

    return filtered
