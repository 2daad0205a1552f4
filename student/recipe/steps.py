"""The rules that batch size, blocks, repeats and parts of a step must meet; checked before torch is imported, too."""

from collections.abc import Sequence

from shards.text.figures import count
from shards.views.view_recipe import ViewRecipe, require_whole_groups


def require_steps(
    rows: Sequence[int],
    views: ViewRecipe,
    *,
    batch_size: int,
    repeats: int = 1,
    num_views: int | None = None,
    epochs: int | None = None,
    parts: int = 1,
) -> None:
    """Refuse numbers that do not fit each other, or that leave an epoch without a step.

    Args:
        rows: samples of each shard. views: the recipe; gives block_size and block_views.
        batch_size: views per optimiser step over all ranks. repeats: views of a block in one super-epoch.
        num_views: views that are cycled through; None when they never end. epochs: None: any number.
        parts: ranks × micro-batches; each takes whole blocks of a step.

    Raises:
        ValueError: naming the field.
    """
    block = views.block_size
    require_whole_groups(batch_size, views)
    if repeats < 1 or views.block_views % repeats:
        raise ValueError(
            f"repeats: must divide block_views {views.block_views} of recipe {views.name}, got {repeats}; "
            "views of one block must lie in one view block"
        )
    if num_views is not None and (num_views < 1 or num_views % repeats):
        raise ValueError(
            f"repeats: must divide the {count(num_views, 'view')} in use, got {repeats}; give another number "
            "of repeats, or use another number of views"
        )
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    num_blocks, per_step = sum(count // block for count in rows), batch_size // block
    if not num_blocks:
        raise ValueError(
            f"block_size: no shard holds a block of {count(block, 'sample')} (the largest has {max(rows)}), so there "
            "is no batch; make shards of more samples, or a new cache, whose blocks fit these shards"
        )
    if num_blocks < per_step:
        raise ValueError(
            f"batch_size {batch_size} needs {count(per_step, 'mixing group')} of {count(block, 'image')}, the shards "
            f"have {num_blocks} (what is left over in a shard fills none); give a batch size of at most "
            f"{num_blocks * block}, or use larger shards"
        )
    if per_step % parts:
        fitting = [str(number) for number in range(1, per_step + 1) if per_step % number == 0]
        raise ValueError(
            f"accumulate: a step of {count(batch_size, 'view')} is {count(per_step, 'mixing group')} of {block}, which "
            f"cannot be cut into {parts} equal parts (ranks × accumulate); give an --accumulate that makes them "
            f"{' or '.join(fitting[-4:])}, or a --batch-size that is a multiple of {parts * block}"
        )
