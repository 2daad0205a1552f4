"""What both stages must agree on: the bytes of a sample, and the pixels of its views.

    index    keys, places, checksums and labels of all samples; their bytes, read and checked
    views    recipe + key + view number → parameters → pixels; blocks, mixing, the digest of what this machine renders
    tars     image folder → shards; anyone's shards → index, by a strict scan

rng, world, errors, atomic, signals: keyed streams, rank and size, the exceptions, whole files, stop requests.

The names of `__all__` are what other code may import (docs/python.md); they are loaded when they are asked for.
"""

from typing import TYPE_CHECKING

from shards.public_names import names_from

if TYPE_CHECKING:
    from shards.errors import ArtefactError, CacheError, RunError, ShardError
    from shards.index.reader import ShardReader
    from shards.index.shard_index import ShardIndex, open_index
    from shards.index.sources import expand_shards
    from shards.tars.scan import scan_shards
    from shards.tars.writer import write_samples, write_shards
    from shards.views.blocks import render_sample
    from shards.views.view import ViewParams, render, view_params
    from shards.views.view_recipe import ViewRecipe, recipe_named
    from shards.world import World

__version__ = "0.2.0"
__all__ = [
    "ArtefactError",
    "CacheError",
    "RunError",
    "ShardError",
    "ShardIndex",
    "ShardReader",
    "ViewParams",
    "ViewRecipe",
    "World",
    "__version__",
    "expand_shards",
    "open_index",
    "recipe_named",
    "render",
    "render_sample",
    "scan_shards",
    "view_params",
    "write_samples",
    "write_shards",
]

_MODULES = {
    "ArtefactError": "shards.errors",
    "CacheError": "shards.errors",
    "RunError": "shards.errors",
    "ShardError": "shards.errors",
    "ShardIndex": "shards.index.shard_index",
    "ShardReader": "shards.index.reader",
    "ViewParams": "shards.views.view",
    "ViewRecipe": "shards.views.view_recipe",
    "World": "shards.world",
    "expand_shards": "shards.index.sources",
    "open_index": "shards.index.shard_index",
    "recipe_named": "shards.views.view_recipe",
    "render": "shards.views.view",
    "render_sample": "shards.views.blocks",
    "scan_shards": "shards.tars.scan",
    "view_params": "shards.views.view",
    "write_samples": "shards.tars.writer",
    "write_shards": "shards.tars.writer",
}

__getattr__ = names_from(__name__, _MODULES)
