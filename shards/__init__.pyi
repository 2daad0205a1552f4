"""The public names of this package and where each is defined: read by type checkers, and when a name is first used."""

from .errors import ArtefactError as ArtefactError
from .errors import CacheError as CacheError
from .errors import RunError as RunError
from .errors import ShardError as ShardError
from .index.pixel_rule import CompactRule as CompactRule
from .index.pixel_rule import PixelRule as PixelRule
from .index.reader import ShardReader as ShardReader
from .index.shard_index import ShardIndex as ShardIndex
from .index.shard_index import open_index as open_index
from .index.sources import expand_shards as expand_shards
from .tars.image_rule import ImageRule as ImageRule
from .tars.image_shards import write_shards as write_shards
from .tars.sample_rule import Foreign as Foreign
from .tars.sample_rule import SampleRule as SampleRule
from .tars.scan import scan_shards as scan_shards
from .tars.writer import write_samples as write_samples
from .views.blocks import render_sample as render_sample
from .views.view import ViewParams as ViewParams
from .views.view import render as render
from .views.view import view_params as view_params
from .views.view_recipe import ViewRecipe as ViewRecipe
from .views.view_recipe import recipe_named as recipe_named
from .world import World as World

__version__: str
