"""Read and check what a weights file says of itself, without importing torch.

A weights file may come from a stranger. What its metadata ask for is compared with two lists before anything is built:
arguments that describe an architecture are accepted, arguments that make timm open files or fetch weights are not.
"""

import json
import math
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import ArtefactError, flag_hint, unreadable_now
from shards.index.pixel_rule import PixelRule
from shards.names import nearest, short
from shards.own_folder import is_weights, suggestion, what_is

METADATA_KEY = "deit_teacher_cache"
"""Where a weights file that this project wrote says what it is of, as JSON in the metadata of safetensors."""

NOT_ARCHITECTURE = {
    **dict.fromkeys(("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"), "it makes timm open other files"),
    **dict.fromkeys(("pretrained", "pretrained_strict", "pretrained_filter_fn"), "weights are given by file or name"),
    **dict.fromkeys(("pretrained_model_args", "pretrained_custom_load"), "weights are given by file or name"),
    **dict.fromkeys(("cache_dir", "model_cfg", "feature_cfg", "kwargs_filter"), "it is timm's own"),
    **dict.fromkeys(("scriptable", "exportable", "no_jit", "use_checkpoint"), "it is timm's own"),
    **dict.fromkeys(("features_only", "out_indices", "feature_cls"), "a student has a classifier"),
    **dict.fromkeys(("device", "dtype"), "--device and --precision choose it"),
    "num_classes": "it is the number of classes of the shards",
    "in_chans": "views have three channels",
    "model_name": "give the model by its name",
}
"""Arguments of `timm.create_model` that are no part of an architecture, and why they are refused."""

_ARCHITECTURE = """
aa_layer aa_stem_only abs_win_pos_embed act_layer always_partition attn attn_act_layer attn_block
attn_block_token_only attn_drop_rate attn_groups attn_head_dim_reduction attn_layer attn_mlp attn_mlp_ratio
attn_only_layer_scale attn_pool_mlp_ratio attn_pool_num_heads attn_ratio attn_stage attn_type attn_types attn_upsample
avg_down base_dim base_dims base_width basic bidirectional block_config block_fn block_layer block_layers
block_layers_token block_reduce_first block_type bn_size bottle_ratio bottleneck_width_ratio cardinality ch_div
channel_attention channel_attn_v2 channel_multiplier channels class_token cls_attn_layers cls_ratio conv_bias
conv_init conv_layer conv_mlp conv_ratio cpe_act crop_scale crpe_window d2_scales deepen_factor depth depth_list
depth_mult depth_token_only depths dim dim_mul dims distillation distilled down_kernel_size down_op down_ops down_pad
down_patch_size down_stride downsample downsample_block downsample_expand_ratios downsample_kernel_size
downsample_norm downsample_padding downsample_ratio downsamples drop_block_rate drop_block_size drop_path_rate
drop_rate dw_act_layer dynamic_img_pad dynamic_img_size embed_dim embed_dims embed_layer embed_norm embed_norm_layer
encoder_pool eta expand_groups expand_ratio expansion_ratio extra_norm_period extra_norm_stage fc_act_layer fc_norm
feature_dim feature_location ffn ffn_ratio final_chs final_norm first_stride fix_init fix_stem focal_levels
focal_windows fused_conv fused_downsample global_att_blocks global_attn_indexes global_block_counts global_pool
global_pos_size group groups growth_rate growth_rates head_bias head_conv head_dim head_fn head_hidden_size
head_init_scale head_mul head_norm head_norm_first head_widths heads hidden_sizes img_scale img_size inc_sec
init_channels init_values initial_chs inner_dim inplanes input_3x3 intermediate_size is_downsample_block k_r k_sec
kernel_size kernel_sizes kernels key_dim layer_scale layer_scale_init_value layer_scale_init_values layers
layerscale_value legacy levels lkc_use_act local_conv_size local_mbconv_norm local_up_to_layer locality_strength
ls_init_value mask_unit_attn mask_unit_size mbconv_expand_ratio merge_size mix_block_ratio mlp_act mlp_bias mlp_block
mlp_block_token_only mlp_layer mlp_ratio mlp_ratio_token_only mlp_ratios msfa_indices msfa_output_resolution
multi_conv n_div named_blocks neck_chans nlhb no_embed_class norm_eps norm_layer norm_layer_cl norm_layers
normalize_modulator num_blocks num_blocks_list num_features num_heads num_heads_inner num_heads_outer
num_init_features num_kv_heads num_levels num_reg_tokens num_rnn_layers num_stages num_vit out_features
outlook_attention output_norm output_stride pad_type parallel_depth partial_dim patch_drop_rate patch_kernel
patch_layer patch_norm patch_padding patch_size patch_sizes patch_stride pconv_fw_type pool_include_prefix pool_size
pooling_kernel_size pooling_scale pos_drop_rate pos_embed pos_embed_grid_size pos_embs position_embedding_size
post_layers pre_norm preact pretrained_window_sizes proj_bias proj_drop_rate q_pool q_stride qk_dim qk_norm qkv_bias
qkv_fused reduction ref_feat_shape reg_tokens rel_pos_dim rel_pos_type reparam replace_stem_pool repmixer_kernel_size
res_scale_init_values rnn_layer rope_grid_indexing rope_grid_offset rope_jitter_coords rope_mrope_section
rope_rescale_coords rope_rotate_half rope_shift_coords rope_temperature rope_theta rope_type round_chs_fn scale
scale_attn_inner scale_attn_norm scale_mlp scale_mlp_norm se_downsamples se_from_exp se_layer se_ratio sep_pos_embed
sequential_attn serial_depths shared_rel_pos shortcut_root small_kernels spatial_conv sr_ratios ssd_expand stages
standardize state_dim stem_bias stem_chs stem_expand_ratio stem_hidden_dim stem_kernel_size stem_mid_norm stem_norm
stem_size stem_stride stem_type stem_use_scale_branch stem_width strict_img_size stride strides swiglu_align_to
swiglu_mlp token_mixers tokens_norm transformer_depths transformer_drop_path transition_compression_ratio types union
use_abs_pos use_abs_pos_emb use_clipped_linears use_conv use_expand_proj use_fc_norm use_grn use_lab use_layer_scale
use_mix_token use_mlp_head use_msfa use_overlap_down use_pos_emb use_pos_embed use_post_norm
use_post_norm_in_modulation use_post_transformer_norm use_pre_transformer_norm use_rel_pos use_rel_pos_bias use_rope
use_rot_pos_emb use_shared_rel_pos_bias vit_stem weight_init widen_factor width width_factor width_list width_mult
widths window_ratio window_size window_sizes window_spec wss zero_init_last
"""
ARCHITECTURE = frozenset(_ARCHITECTURE.split())
"""Arguments of timm's models that a weights file may ask for: sizes, layers and rates."""

MOST_ARGUMENT = 65_536
"""Larger than any width, depth or side of a network that timm has."""

BEST_WEIGHTS = "weights_best.safetensors"
"""The weights of a teacher's best epoch on its validation images, beside those of its last epoch."""

_EPOCHS = {"weights.safetensors": "last", BEST_WEIGHTS: "best"}

_IN_FOLDERS = ("model.safetensors", "weights.safetensors", "pytorch_model.bin")
_LARGEST_HEADER = 100_000_000  # as safetensors itself
_MOST_UNPACKED = 10  # times the bytes of a torch file that was compressed: weights hardly shrink, zeros a thousandfold


class TrainedAs(NamedTuple):
    """What a weights file says of itself.

    Attributes:
        model: timm's name. arguments: for `timm.create_model`. mean, std: what its input was normalised with.
        class_names: in the order of its answers; () where it knows none.
        pixels: what was done to the pixels of the images that it was trained on.
        top1: of its validation, percent; None where there was none.
        image_size: side of the images that it was trained on, pixels; None where the file does not say.
    """

    model: str
    arguments: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_names: tuple[str, ...]
    pixels: PixelRule
    top1: float | None = None
    image_size: int | None = None

    def size_words(self, size: int) -> str:
        """Say that views have another size than the images that it was trained on; "" where they have not."""
        if self.image_size in (None, size):
            return ""
        return (
            f"the teacher was trained on images of {self.image_size} pixels, these views have {size}: it is best at "
            f"its own size{flag_hint('--size')}; see how often it is right"
        )


def weights_file(path: Path) -> Path:
    """Return the file of weights that a path stands for: itself, or the one in a folder of `export`, a run or the hub.

    ArtefactError for a folder without weights.
    """
    if not path.is_dir():
        return path
    if _has_weights(path):
        return next(path / name for name in _IN_FOLDERS if (path / name).is_file())
    meant = (
        _unfinished(path)
        or suggestion(path, _has_weights)
        or _foreign(path)
        or "give the folder of a run, or a file of weights"
    )
    raise ArtefactError(f"weights {path}: a folder, but it holds none of {', '.join(_IN_FOLDERS)}; {meant}")


def _has_weights(path: Path) -> bool:
    """Whether a folder holds a file of weights."""
    return any((path / name).is_file() for name in _IN_FOLDERS)


def _foreign(path: Path) -> str:
    """Say that something else than weights lies at a path; "" where nobody knows what."""
    return f"it is {what}" if not is_weights(path) and (what := what_is(path)) else ""


def _unfinished(folder: Path) -> str:
    """Say that a folder holds a run that has no weights yet; "" for any other."""
    is_run = (folder / "config.json").is_file() and (folder / "checkpoints").is_dir() and not _has_weights(folder)
    return f"{folder} is a run that is not finished: run its command again" if is_run else ""


def require_weights(flag: str, path: Path) -> Path:
    """Return the file of weights that the path behind a flag stands for; ArtefactError when it is missing."""
    try:
        file = weights_file(path)
    except ArtefactError as error:
        raise ArtefactError(f"{flag}: {error}") from None
    if not file.is_file():
        meant = _unfinished(file.parent) or suggestion(path, lambda other: _has_weights(other) or is_weights(other))
        meant = meant or "give a .safetensors or torch file of weights, or a run"
        raise ArtefactError(f"{flag} {path}: no such file; {meant}")
    require_whole(file)
    return file


def require_whole(path: Path) -> None:
    """Refuse a file of weights that is damaged, as far as its structure tells: of a bare pickle (old torch), nothing.

    ArtefactError naming the file and what is wrong with it.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        kind, problem = " as safetensors", _safetensors_problem(path)
    elif head.startswith(b"PK"):
        kind, problem = " as a torch file", _torch_problem(path)
    elif head.startswith(b"\x80"):
        return
    else:
        got = "an empty one" if not head else f"one that begins with {head!r}"
        kind, problem = "", f"expected a .safetensors or torch file, got {got}"
        if foreign := _foreign(path):
            raise ArtefactError(f"weights {path}: expected a .safetensors or torch file; {foreign}")
    if problem:
        raise ArtefactError(f"weights {path}: cannot be read{kind}: {problem}; copy or export them again")


def _safetensors_problem(path: Path) -> str:
    """Say how a file differs from what its own header says; "" where it does not."""
    try:
        ends = [entry["data_offsets"][1] for name, entry in _header(path).items() if name != "__metadata__"]
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        expected, got = 8 + length + max(ends, default=0), path.stat().st_size
        return "" if expected == got else f"expected {expected} bytes, got {got}"
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        return short(f"its header: {error}", 150)


def unpacked_bytes(path: Path) -> int:
    """Count the bytes of a file of weights, of a compressed torch file (`zip`) those that its members unpack to."""
    with path.open("rb") as file:
        if not file.read(2).startswith(b"PK"):
            return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _torch_problem(path: Path) -> str:
    """Say what is wrong with the zip of a torch file; "" where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                return f"expected one member data.pkl, got {len(pickles)}"
            archive.open(pickles[0]).close()  # reads its header; torch can write files without checksums
        held, num_bytes = unpacked_bytes(path), path.stat().st_size
        if held > _MOST_UNPACKED * num_bytes:
            return f"its members unpack to {held} bytes, expected at most {_MOST_UNPACKED} times the file's {num_bytes}"
        return ""
    except Exception as error:  # the reader of a damaged zip fails with whatever it stumbles on
        if unreadable_now(error):
            raise
        return short(str(error) or type(error).__name__, 150)


def require_named(path: Path, model: str | None) -> None:
    """ValueError where neither a file of weights nor the user says which model they are of.

    A damaged file is refused where it is read.
    """
    file = weights_file(path)
    try:
        named = file.suffix == ".safetensors" and METADATA_KEY in _header(file).get("__metadata__", {})
    except (OSError, ValueError, TypeError, RecursionError):
        return
    if model is None and not named:
        raise ValueError(f"weights {path}: do not say which model they are of; give --model NAME")


def trained_as(weights: Path | None) -> TrainedAs | None:
    """Read what a file of weights that this project trained says of itself; None for all others.

    A damaged file says nothing here and is refused where it is read; OSError for one that cannot be read: as another's
    weights, it would be used otherwise.
    """
    if weights is None or (weights := weights_file(weights)).suffix != ".safetensors" or not weights.is_file():
        return None
    try:
        info = json.loads(_header(weights)["__metadata__"][METADATA_KEY])
        (a, b, c), (d, e, f) = info["mean"], info["std"]
        names = tuple(str(name) for name in info["class_names"])
        model, arguments = info["recipe"]["model"], dict(info["recipe"]["model_args"])
        pixels = PixelRule.from_json(info.get("pixels", {}))
        top1, size = _top1(info.get("metrics")), info["recipe"].get("image_size")
        size = size if isinstance(size, int) else None
        return TrainedAs(model, arguments, (a, b, c), (d, e, f), names, pixels, top1, size)
    except (KeyError, ValueError, TypeError, RecursionError):
        return None


def _top1(metrics: Any) -> float | None:
    """The top-1 among the measured numbers of a file; None without one: the file is then no less of this project."""
    value = metrics.get("top1") if isinstance(metrics, Mapping) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def which_weights(path: Path) -> str:
    """Say which epoch's weights a path stands for and how good they were on the validation images of their run.

    Where a better file of the same training lies beside it, that is named too. "" for files of other names, which may
    be of any epoch.
    """
    file = weights_file(path)
    best, own, other = file.with_name(BEST_WEIGHTS), trained_as(file), None
    if own is None or own.top1 is None or file.name not in _EPOCHS:
        return ""
    if file.name != BEST_WEIGHTS:
        other = trained_as(best)
    words = f"{file}, {_EPOCHS[file.name]} epoch, top-1 {own.top1:.1f} %"
    better = other is not None and other.top1 is not None and other.top1 > own.top1
    return words + (f"; the best epoch has {other.top1:.1f} %: {best}" if other and better else "")


def require_arguments(arguments: Mapping[str, Any], what: str) -> None:
    """Refuse arguments for timm that describe no architecture, and numbers that no network has.

    Args:
        arguments: for `timm.create_model`, by name. what: what messages put before a name, such as "model_args.".

    Errors:
        ValueError naming the argument.
    """
    for name, value in arguments.items():
        if name in NOT_ARCHITECTURE:
            raise ValueError(f"{what}{name}: describes no architecture: {NOT_ARCHITECTURE[name]}; leave it out")
        for number in _numbers(value):
            if not abs(number) <= MOST_ARGUMENT:  # nor is nan
                raise ValueError(f"{what}{name}: expected numbers of at most {MOST_ARGUMENT}, got {short(str(number))}")
            if "drop" in name and name.endswith("_rate") and not 0 <= number < 1:
                raise ValueError(f"{what}{name}: expected a share in [0, 1), got {number:g}")


def require_architecture(arguments: Mapping[str, Any], where: str, own: Collection[str], advice: str) -> None:
    """Refuse arguments that a file gives for timm and that describe no architecture.

    Args:
        own: further names of arguments, those of a model that the user's code has registered with timm.
        advice: what to do, for messages.

    Errors:
        ArtefactError naming the file, as `where`, and the argument.
    """
    try:
        require_arguments(arguments, f"{where}: model_args.")
    except ValueError as error:
        raise ArtefactError(str(error)) from None
    for name in arguments:
        if name not in ARCHITECTURE and name not in own:
            similar = ", ".join(nearest(name, ARCHITECTURE)) or "none"
            raise ArtefactError(
                f"{where}: model_args.{short(name)} describes no architecture (similar: {similar}); {advice}"
            )


def require_possible(
    path: Path, arguments: Mapping[str, Any], *, num_classes: int = 0, own: Collection[str] = ()
) -> None:
    """Refuse what a weights file asks to be built, unless it is an architecture and its own tensors are of such a one.

    Every whole number must be one that its tensors can show: no depth above their count, no width above their largest
    side. So a few bytes of metadata cannot ask for more memory than the file itself has a use for.

    Args:
        path: a .safetensors file. arguments: what its metadata ask for, by name; nested values are looked into.
        num_classes: what they say of their classes.
        own: as of `require_architecture`.

    Errors:
        ArtefactError naming the file, the argument and what it may be.
    """
    require_architecture(arguments, f"weights {path}", own, "give weights exported by this project")
    most = _largest_size(path)
    for name, value in {**arguments, "num_classes": num_classes}.items():
        for number in _numbers(value):
            if abs(number) > most:
                raise ArtefactError(
                    f"weights {path}: say of themselves {name} = {number:g}, their tensors are of at most {most}; the "
                    "file is damaged or not what it says: give weights that this project exported"
                )


def _largest_size(path: Path) -> int:
    """The largest side of a file's tensors, or their number where that is more."""
    try:
        tensors = {name: entry for name, entry in _header(weights_file(path)).items() if name != "__metadata__"}
        return max([*(int(side) for entry in tensors.values() for side in entry["shape"]), len(tensors), 16])
    except (OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise ArtefactError(f"weights {path}: cannot be read as safetensors ({error}); export them again") from None


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, which the length of it precedes."""
    with path.open("rb") as file:
        return dict(json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _LARGEST_HEADER))))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, (int, float)):
        yield value
