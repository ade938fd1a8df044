"""Configurations: what they describe becomes objects; filling, merging and flattening them."""

from .configs import (
    FLATTEN_TUPLE,
    S_DROP,
    deepcopy_basic_type,
    flatten_dict,
    hash_args,
    update_config,
)
from .keywords import accepted_keywords, auto_filter_kwargs
from .modules import get_module_by_module_path, split_module_path
from .objects import get_callable_kwargs, get_cls_kwargs, init_instance_by_config
from .placeholders import fill_placeholder, find_placeholders, get_item_from_obj

__all__ = [
    "FLATTEN_TUPLE",
    "S_DROP",
    "accepted_keywords",
    "auto_filter_kwargs",
    "deepcopy_basic_type",
    "fill_placeholder",
    "find_placeholders",
    "flatten_dict",
    "get_callable_kwargs",
    "get_cls_kwargs",
    "get_item_from_obj",
    "get_module_by_module_path",
    "hash_args",
    "init_instance_by_config",
    "split_module_path",
    "update_config",
]
