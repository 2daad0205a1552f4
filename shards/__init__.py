"""What both stages must agree on: the bytes of a sample, and the pixels of its views.

images → writer → shards → scan → index        reader: the bytes of (shard, row), checked
recipe + key + view → views: draw → render     mixing: blocks, partners, boxes; uint8 views → model input
blocks.render_block                            what the workers of stage 1 and stage 2 both call
rng, behaviour, world, errors                  keyed streams, library digest, rank and size, the exceptions
"""

__all__ = [
    "behaviour",
    "blocks",
    "errors",
    "index",
    "mixing",
    "reader",
    "recipe",
    "rng",
    "scan",
    "views",
    "world",
    "writer",
]
