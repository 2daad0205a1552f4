"""How large everything is: the real sizes, and tiny ones with which the same code runs on a CPU in seconds."""

from dataclasses import dataclass, field, replace

from shards.views.view_recipe import ViewRecipe, recipe_named
from student.recipe.papers import recipe_for
from student.recipe.settings import Precision
from student.recipe.student_recipe import StudentRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is measured, and for how long.

    Attributes:
        teacher, teacher_batches: of the bare forward and of stage 1, in bf16. other_teachers: of the layouts.
        small_teacher: of the comparison of cached with online, in float32.
        students: name → timm name. student_args: model arguments of all of them.
        precisions: of the student's steps; the second, if there is one, where one is enough.
        student_batch, ranks_batch, compare_batch: images of a step where it is timed, where ranks share a GPU, and
            where cached is compared with online.
        backend: of torch.compile. views: recipe of the views. view_words: the same as flags. num_classes: C.
        num_photos, rows, num_shards, num_views: of the synthetic shards and the cache made from them.
        seconds: how long each rate is measured. steps: that are timed. stage1_s: how long `cache-teacher` runs.
        compare_steps: steps that are compared bit by bit.
        budget_s: after so long nothing new is begun.
    """

    teacher: str = "regnety_160"
    teacher_batches: tuple[int, ...] = (64, 256)
    other_teachers: tuple[str, ...] = (
        *("resnet50", "resnetv2_101", "efficientnet_b3", "efficientnet_lite0"),
        *("regnety_032", "convnext_base", "deit_base_patch16_224"),
    )
    small_teacher: str = "regnety_004"
    students: tuple[tuple[str, str], ...] = (("tiny", "deit_tiny_distilled_patch16_224"),)
    student_args: tuple[tuple[str, float], ...] = ()
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    student_batch: int = 256
    ranks_batch: int = 256
    compare_batch: int = 64
    views: ViewRecipe = field(default_factory=lambda: recipe_named("deit"))
    view_words: tuple[str, ...] = ()
    backend: str = "inductor"
    num_classes: int = 1000
    num_photos: int = 64
    rows: int = 512
    num_shards: int = 4
    num_views: int = 6
    stage1_views: int = 120
    seconds: float = 1.5
    stage1_s: float = 10.0
    steps: int = 20
    compare_steps: int = 20
    budget_s: float = 225.0

    @property
    def precision(self) -> Precision:
        """Of steps where one precision is enough."""
        return self.precisions[:2][-1]

    def recipe(self, model: str, **changes: object) -> StudentRecipe:
        """How a student is trained: its own recipe, soft distillation, every image once an epoch."""
        defaults = {
            "distill": "soft",
            "temperature": 3.0,
            "distill_weight": 0.5,
            "batch_size": self.student_batch,
            "epochs": 50,
        }
        base = replace(recipe_for(model, with_cache=True), model_args=tuple(sorted(self.student_args)))
        return replace(base, image_size=self.views.size, repeats=1, **(defaults | changes))  # type: ignore[arg-type]


TINY = Sizes(
    teacher="test_resnet",
    teacher_batches=(8, 16),
    other_teachers=("test_resnet",),
    small_teacher="test_resnet",
    students=(("tiny", "deit_tiny_distilled_patch16_224"),),
    student_args=(("depth", 1), ("embed_dim", 16), ("num_heads", 2), ("patch_size", 8)),
    student_batch=16,
    ranks_batch=16,
    compare_batch=16,
    views=recipe_named("deit", size=32, block_size=8, block_views=2),
    view_words=("--set", "block_size=8", "--views-per-unit", "2"),
    backend="aot_eager",
    num_classes=80,
    num_photos=4,
    rows=64,
    num_shards=2,
    num_views=4,
    stage1_views=40,
    seconds=0.05,
    stage1_s=3.0,
    steps=2,
    compare_steps=4,
    budget_s=900.0,
)
