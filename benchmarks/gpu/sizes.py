"""How large everything is: the real sizes, and tiny ones with which the same code runs on a CPU in seconds."""

from dataclasses import dataclass, field, replace

from shards.views.view_recipe import ViewRecipe, recipe_named
from student.recipe.papers import recipe_for
from student.recipe.student_recipe import StudentRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is measured, and for how long.

    Attributes:
        teacher, teacher_batches, precisions, compiled: the teacher, its batches, and whether it is also compiled.
        small_teacher: of the cached = online comparison, in float32.
        students: name → timm name. student_args: model arguments of all of them.
        student_batch, compare_batch: images of a step where it is timed, and where it is compared.
        views: recipe of the views. num_classes: C.
        num_photos, rows, num_shards, num_views: of the synthetic shards and the cache made from them.
        seconds: how long each rate is measured. steps: of a timed round. rounds: of plain, cached, online in turns.
        compare_steps: steps that are compared bit by bit.
        budget_s: after so long nothing new is begun.
    """

    teacher: str = "regnety_160"
    teacher_batches: tuple[int, ...] = (64, 256, 512)
    precisions: tuple[str, ...] = ("bf16", "fp16", "fp32")
    compiled: bool = True
    small_teacher: str = "regnety_004"
    students: tuple[tuple[str, str], ...] = (
        ("tiny", "deit_tiny_distilled_patch16_224"),
        ("small", "deit_small_distilled_patch16_224"),
        ("base", "deit_base_distilled_patch16_224"),
    )
    student_args: tuple[tuple[str, float], ...] = ()
    student_batch: int = 256
    compare_batch: int = 64
    views: ViewRecipe = field(default_factory=lambda: recipe_named("deit"))
    num_classes: int = 1000
    num_photos: int = 64
    rows: int = 512
    num_shards: int = 4
    num_views: int = 12
    stage1_views: int = 120
    seconds: float = 2.0
    stage1_s: float = 15.0
    steps: int = 10
    rounds: int = 3
    compare_steps: int = 20
    budget_s: float = 450.0

    def recipe(self, model: str, **changes: object) -> StudentRecipe:
        """How a student is trained: its own recipe, soft distillation, every image once an epoch."""
        defaults = {"distill": "soft", "temperature": 3.0, "distill_weight": 0.5, "batch_size": self.student_batch}
        base = replace(recipe_for(model, with_cache=True), model_args=tuple(sorted(self.student_args)))
        return replace(base, image_size=self.views.size, repeats=1, epochs=50, **(defaults | changes))  # type: ignore[arg-type]


TINY = Sizes(
    teacher="test_resnet",
    teacher_batches=(16,),
    precisions=("bf16", "fp32"),
    compiled=False,
    small_teacher="test_resnet",
    students=(("tiny", "deit_tiny_distilled_patch16_224"),),
    student_args=(("depth", 1), ("embed_dim", 16), ("num_heads", 2), ("patch_size", 8)),
    student_batch=16,
    compare_batch=16,
    views=recipe_named("deit", size=32, block_size=8, block_views=2),
    num_classes=80,
    num_photos=4,
    rows=32,
    num_shards=2,
    num_views=4,
    stage1_views=4,
    seconds=0.05,
    stage1_s=0.3,
    steps=1,
    rounds=1,
    compare_steps=4,
)
