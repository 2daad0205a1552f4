"""What each field of a recipe is, in a few words, and its unit, for `recipes`; the docstrings say more.

Fields that were added later say it where they are declared (`later(default, words=…)`).
"""

from shards.values import words_of
from shards.views.view_recipe import ViewRecipe
from student.recipe.student_recipe import StudentRecipe

VIEW_WORDS: dict[str, tuple[str, str]] = {
    "name": ("", "what the recipe is called in reports"),
    "seed": ("", "of every random stream of the views"),
    "size": ("px", "side of the square view"),
    "crop": ("", "rrc: random resized crop; src: simple random crop; center; resize"),
    "crop_scale": ("share of the area", "smallest and largest crop of rrc"),
    "crop_ratio": ("width / height", "narrowest and widest crop of rrc"),
    "crop_pct": ("share of the side", "what center keeps of the short side"),
    "flip": ("probability", "of a horizontal flip"),
    "rand_augment": ("", "timm's string: m magnitude, mstd its spread, inc1 increasing; empty is off"),
    "three_augment": ("", "one of grey, solarise, blur (DeiT-III)"),
    "color_jitter": ("strength", "of brightness, contrast and saturation; 0 is off"),
    "erase_prob": ("probability", "of erasing one box with noise"),
    "erase_scale": ("share of the area", "smallest and largest box"),
    "erase_ratio": ("width / height", "narrowest and widest box"),
    "mixup_alpha": ("", "of Mixup's Beta distribution; 0 is off"),
    "cutmix_alpha": ("", "of CutMix's Beta distribution; 0 is off"),
    "mix_prob": ("probability", "that a pair is mixed"),
    "switch_prob": ("probability", "that it is CutMix where both are on"),
    "block_size": ("samples", "that may be mixed with each other; a batch is made of whole blocks"),
    "block_views": ("views", "that share one partition into blocks: the views of one chunk of a cache"),
    "mean": ("0 … 1", "taken off each channel of the finished view"),
    "std": ("0 … 1", "that each channel is divided by"),
} | words_of(ViewRecipe)

STUDENT_WORDS: dict[str, tuple[str, str]] = {
    "name": ("", "what the recipe is called"),
    "model": ("", "the student: a name of `models`, or any of timm's"),
    "model_args": ("", "further arguments for timm, such as embed_dim (model_args.NAME)"),
    "image_size": ("px", "side of the images; with a cache it is the cache's"),
    "finetune": ("", "start from init_weights"),
    "init_weights": ("file", "weights that fine-tuning starts from"),
    "epochs": ("epochs", "of the run"),
    "batch_size": ("views", "per optimiser step, over all processes"),
    "repeats": ("views", "of a sample per visit: repeated augmentation"),
    "optimizer": ("", "adamw or lamb"),
    "betas": ("", "of its two running means"),
    "eps": ("", "added to the root of the second one"),
    "weight_decay": ("per step", "decoupled"),
    "decay_groups": ("", "matrices: not biases, norms and what the model lists; all: everything"),
    "decay_dist_token": ("", "also the distillation token, as the authors' code does"),
    "clip_grad": ("norm", "bound of the gradient's norm; 0 is off"),
    "lr": ("", "peak learning rate, before scaling"),
    "lr_scaling": ("", "linear: lr × batch_size / lr_base_batch; none: lr"),
    "lr_base_batch": ("views", "the batch that lr is meant for"),
    "warmup_epochs": ("epochs", "from warmup_lr up to the peak"),
    "warmup_lr": ("", "where the warm-up begins; not scaled"),
    "min_lr": ("", "where the schedule ends; not scaled"),
    "schedule": ("", "cosine or constant"),
    "schedule_unit": ("", "the rate moves once an epoch, or at every step"),
    "lr_lag": ("", "the authors' off-by-one: the rate of the epoch before"),
    "drop_path": ("probability", "of dropping the last block"),
    "drop_path_shape": ("", "linear from 0 over depth, or uniform"),
    "layer_scale_init": ("", "first value of LayerScale; 0 leaves the model's own"),
    "ema_decay": ("per step", "of the average of the weights; 0 is off"),
    "base_loss": ("", "against the labels: cross_entropy, or binary (DeiT-III)"),
    "label_smoothing": ("share", "of the target that goes to all classes"),
    "distill": ("", "the loss against the teacher, or none"),
    "distill_weight": ("λ, 0 … 1", "weight of that loss; the base loss has the rest"),
    "temperature": ("τ", "of that loss, where it reads one"),
    "reduction": ("", "textbook: by batch; reference: soft by batch × classes; per_class: every loss so"),
    "view": ("", "view recipe of a run without a cache"),
    "view_overrides": ("", "fields changed in it (view.FIELD)"),
    "eval_crop_pct": ("share of the side", "what evaluation keeps of the short side"),
} | words_of(StudentRecipe)
