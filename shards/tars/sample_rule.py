"""Group the members of a shard into samples, and check every rule that a sample must meet.

Members group into samples by WebDataset's key rule: the name up to the first dot of its last component, folders
included; or, when asked for, up to the last dot. Known suffixes: the images (`SUFFIXES`), `cls` (the label, an ASCII
integer), `json` (must parse; can carry the label instead) and `txt` (img2dataset's caption; not read). Everything else
is refused, unless it is to be ignored, and then it is counted.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import google_crc32c

from shards.documents import parse_json
from shards.errors import Problem, ShardError
from shards.index.index_checks import SUFFIXES, UNLABELLED
from shards.names import short
from shards.tars.tar import Member
from shards.views.decode import MAX_PIXELS, decode_rgb, not_an_image, read_header

IGNORED_SUFFIXES = ("txt",)
_KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_DOTTED_KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^/]*[^./][^/]*)\.([^./]*)")


class Foreign(NamedTuple):
    """What shards of others may hold beside samples, and how their keys are written.

    Attributes:
        ignored_suffixes: members whose names end so are passed over, counted by suffix.
        ignore_unknown: so is every other member that is neither image nor label.
        key_dots: keys have dots of their own: a key ends at the last dot of the file name, not at the first.
        skip_empty: so is a whole tar without any member, such as img2dataset leaves where every download failed.
    """

    ignored_suffixes: tuple[str, ...] = ()
    ignore_unknown: bool = False
    key_dots: bool = False
    skip_empty: bool = False


class SampleRule(NamedTuple):
    """What a sample must be.

    Attributes:
        num_classes: labels are in [0, num_classes), where that is known.
        label_key: labels are under this key of each sample's .json (img2dataset) instead of in .cls.
        decode: decode every image, of at most `max_pixels`: finds those that are cut or corrupt in an intact shard.
        foreign: what shards of others may hold beside samples.
        labels_optional: a sample may lack a label: it is -1 then.
        class_numbers: class name → label, for labels that are names.
    """

    num_classes: int | None = None
    label_key: str | None = None
    decode: bool = False
    max_pixels: int = MAX_PIXELS
    foreign: Foreign = Foreign()
    labels_optional: bool = False
    class_numbers: Mapping[str, int] = {}


class Row(NamedTuple):
    """A finished sample as the index holds it; `label` is -1 for none, `suffix` the index into SUFFIXES."""

    key: str
    offset: int
    size: int
    crc32c: int
    label: int
    suffix: int


class Stray(NamedTuple):
    """A member of no sample; `suffix`, in lower case, is None where its name has no key."""

    member: Member
    suffix: str | None

    @property
    def has_dots(self) -> bool:
        """Whether its name would have a key and a known suffix if the key ended at the last dot."""
        first, _, last = (self.suffix or "").rpartition(".")
        return bool(first) and (last in SUFFIXES or last in ("cls", "json"))


def split_name(member: Member, foreign: Foreign, ignored: Counter[str], strays: list[Stray]) -> tuple[str, str] | None:
    """Key, and suffix in lower case, by WebDataset's rule or up to the last dot; None for a member of no sample.

    Such a member is counted in `ignored`, or added to `strays` where the rule does not pass over it.
    """
    name = member.name.lower()
    if name.rpartition("/")[2].startswith("._"):
        ignored["file of macOS (._)"] += 1
        return None
    for suffix in foreign.ignored_suffixes:
        if name.endswith(f".{suffix}"):
            ignored[f".{suffix}"] += 1
            return None
    match = (_DOTTED_KEY_AND_SUFFIX if foreign.key_dots else _KEY_AND_SUFFIX).fullmatch(member.name)
    suffix = match[2].lower() if match else ""
    if match is not None and (suffix in SUFFIXES or suffix in IGNORED_SUFFIXES or suffix in ("cls", "json")):
        return match[1], suffix
    if foreign.ignore_unknown:
        ignored[f".{suffix}" if match else "without a suffix"] += 1
    else:
        strays.append(Stray(member, suffix if match else None))
    return None


_MOST_SUFFIXES = 4


def stray_problems(strays: Sequence[Stray]) -> list[Problem]:
    """Say what is wrong with each member of no sample; all that need the same flags have the same advice."""
    dotted = {stray.suffix: None for stray in strays if stray.suffix and stray.has_dots}
    advice = _passing_over([stray.suffix for stray in strays if stray.suffix and not stray.has_dots])
    dots_advice = f"a key ends at the first dot; where keys have dots give --key-dots; {_passing_over(dotted)}"
    return [_stray_problem(stray, len(dotted), dots_advice, advice) for stray in strays]


def _passing_over(suffixes: Iterable[str]) -> str:
    """Name the flags that pass over members with these suffixes."""
    names = list(dict.fromkeys(suffixes))
    flags = [f"--ignore-suffix {name}" for name in names] if len(names) <= _MOST_SUFFIXES else []
    return f"to pass over such members give {' '.join(flags)}{', or ' if flags else ''}--ignore-unknown"


def _stray_problem(stray: Stray, num_dotted: int, dots_advice: str, advice: str) -> Problem:
    suffix, place = stray.suffix, f"offset {stray.member.offset}: member {stray.member.name!r}"
    if suffix is None:
        no_suffix = "rename it, or give --ignore-unknown"
        return Problem(f"{place}: expected a name of the form key.suffix", "name without a suffix", no_suffix)
    if suffix == "tar":
        no_shard = "a tar for each class, as of ImageNet's download, is no shard: make shards of it with make-shards"
        return Problem(f"{place}: a tar in a tar: expected images and labels", "tar in the tar", no_shard)
    kind = f".{short(suffix, 20)}"
    if stray.has_dots:
        kind = kind if num_dotted <= _MOST_SUFFIXES else "name with several dots"
        return Problem(f"{place}: expected one dot before the suffix, got suffix {short(suffix)!r}", kind, dots_advice)
    known = ", ".join((*SUFFIXES, "cls", "json", *IGNORED_SUFFIXES))
    return Problem(f"{place}: expected one of the suffixes {known}, got suffix {short(suffix)!r}", kind, advice)


def refused(member: Member, where: str, expected: str, advice: str, got: str = "") -> ShardError:
    """The error of a member that is not as it must be."""
    words = f"expected {expected}, got {got}" if got else f"expected {expected}"
    return ShardError(f"{where}: offset {member.offset}: member {member.name!r}: {words}; {advice}")


class SampleMembers:
    """Checks the members of one key as they come, and makes a `Row` of them."""

    def __init__(self, key: str, offset: int, rule: SampleRule, where: str, undecodable: list[Problem]) -> None:
        self.key = key
        self._offset = offset
        self._rule = rule
        self._where = where
        self._undecodable = undecodable
        self._suffixes: set[str] = set()
        self._image: tuple[Member, int, int] | None = None
        self._labels: list[int] = []

    def add(self, member: Member, suffix: str, data: bytes) -> None:
        """Take the next member of the sample."""
        if suffix in self._suffixes:
            raise refused(member, self._where, f"one .{suffix} in the sample", "remove the duplicate", "a second one")
        self._suffixes.add(suffix)
        if suffix in SUFFIXES:
            if self._image is not None:
                other = self._image[0].name
                raise refused(member, self._where, "one image in the sample", "remove one", f"{other!r} before it")
            place = f"{self._where}: offset {member.offset}: member {member.name!r}"
            require_image(data, place)
            if self._rule.decode:
                self._decode(data, place)
            self._image = (member, google_crc32c.value(data), SUFFIXES.index(suffix))
        elif suffix == "cls":
            self._labels.append(self._label(member, data))
        elif suffix == "json":
            self._add_json(member, data)

    def _decode(self, data: bytes, place: str) -> None:
        """Note an image that does not decode: the scan goes on to name all of them."""
        try:
            decode_rgb(data, place, header=read_header(data, place, max_pixels=self._rule.max_pixels))
        except ShardError as error:
            text, _, advice = str(error).rpartition("; ")
            self._undecodable.append(Problem(text, "image that does not decode", advice))

    def row(self) -> Row:
        """The finished sample; ShardError when a part is missing or the labels disagree."""
        start = f"{self._where}: offset {self._offset}: sample {self.key!r}"
        if self._image is None:
            raise ShardError(f"{start}: expected an image ({', '.join(SUFFIXES)}), got {self._found()}; make it again")
        if not self._labels and not self._rule.labels_optional:
            advice = (
                "if the labels are in .json, name their key with --label-key"
                if "json" in self._suffixes
                else "images without labels: give make-shards this tar and a list of their labels, --labels FILE; to "
                "train on them as they are, from a teacher's answers, give --no-labels"
            )
            raise ShardError(f"{start}: expected a label in .cls, got {self._found()}; {advice}")
        if len(set(self._labels)) > 1:
            raise ShardError(f"{start}: .cls and .json disagree on the label: {self._labels}; make the shard again")
        member, checksum, suffix = self._image
        label = self._labels[0] if self._labels else UNLABELLED
        return Row(self.key, member.data_offset, member.size, checksum, label, suffix)

    def _found(self) -> str:
        return "only " + ", ".join(f".{suffix}" for suffix in sorted(self._suffixes))

    def _label(self, member: Member, data: bytes) -> int:
        match = re.fullmatch(rb"[ \t]*([0-9]{1,9})[ \t\r\n]*", data)
        name = data.decode("utf-8", "replace").strip()
        if name in self._rule.class_numbers:
            return self._rule.class_numbers[name]
        if match is None:
            advice = "where labels are names of classes give all names with --class-names"
            raise refused(member, self._where, "a label as an ASCII integer", advice, repr(data[:40]))
        return self._in_range(member, int(match[1]))

    def _number(self, label: object) -> int | None:
        """A label of a .json as a number: 3, 3.0, "3" or the name of a class; None for others."""
        if isinstance(label, str):
            label = label.strip()
            if label in self._rule.class_numbers:
                return self._rule.class_numbers[label]
            return int(label) if re.fullmatch(r"[0-9]{1,9}", label) else None
        if isinstance(label, float) and label.is_integer():
            return int(label)
        return label if isinstance(label, int) and not isinstance(label, bool) else None

    def _in_range(self, member: Member, label: int) -> int:
        limit = self._rule.num_classes if self._rule.num_classes is not None else 2**31
        if not 0 <= label < limit:
            raise refused(
                member, self._where, f"a label in [0, {limit})", "check --num-classes or --class-names", f"{label}"
            )
        return label

    def _add_json(self, member: Member, data: bytes) -> None:
        place = f"{self._where}: offset {member.offset}: member {member.name!r}"
        fields = parse_json(data, place, error=ShardError, advice="make it again")
        name = self._rule.label_key
        if name is None:
            return
        stored = _nested(fields, name)
        if stored is None and self._rule.labels_optional:
            return
        label = self._number(stored)
        if label is None:
            advice = "check --label-key; where labels are names of classes give all names with --class-names"
            expected = f"an integer label under {name!r}"
            raise refused(member, self._where, expected, advice, short(repr(stored)))
        self._labels.append(self._in_range(member, label))


def _nested(fields: object, name: str) -> object:
    """The value under a name, or under names with dots between them; None for none."""
    if not isinstance(fields, dict) or name in fields:
        return fields.get(name) if isinstance(fields, dict) else None
    first, dot, rest = name.partition(".")
    return _nested(fields.get(first), rest) if dot else None


def require_image(data: bytes, where: str) -> str:
    """The format of encoded image bytes by their signature: "jpg", "png" or "webp"; ShardError for anything else.

    Names do not tell: ImageNet itself holds a PNG that is called .JPEG.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise not_an_image(data, where)
