"""Images without labels: all of a folder, in folders of any depth; a teacher's answers are what is learnt from them."""

from collections.abc import Mapping

from shards.formats.image_list import ImageList
from shards.formats.input_format import InputFormat, Source
from shards.formats.walk import ImageWalk
from shards.index.index_checks import UNLABELLED


def _read(source: Source) -> Mapping[str, ImageList]:
    tree = source.tree
    walk = ImageWalk(tree, ignore_unknown=source.ignore_unknown)
    images = walk.all_images(UNLABELLED)
    listed = ImageList(
        tree=tree,
        class_names=source.class_names,
        num_classes=len(source.class_names),
        images=images,
        ignored=dict(walk.ignored),
        labelled=False,
    )
    return {"": listed}


NO_LABELS = InputFormat(
    name="unlabelled",
    summary="images without labels, in folders of any depth",
    suits=lambda source: source.no_labels,
    read=_read,
)
