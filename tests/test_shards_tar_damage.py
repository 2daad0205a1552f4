"""Damage and hostility in tars: every kind is a ShardError that names the shard and the offset, never fewer samples.

CPython's tarfile, and webdataset on top of it, read most of these as a shorter archive.
"""

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.tars.sample_rule import SampleRule
from shards.tars.scan import scan_shards
from shards.tars.shard_scan import scan_file
from shards.tars.tar import BLOCK, read_members
from shards.tars.writer import write_samples

PNG = b"\x89PNG\r\n\x1a\n"
IMAGE_BYTES = 700  # two blocks: header, data, data with padding


def image(n: int) -> bytes:
    """Something with the signature of an image; nothing here decodes it."""
    return PNG + bytes((n + i) % 251 for i in range(IMAGE_BYTES - len(PNG)))


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    """Two shards of three samples."""
    return write_samples(
        ((f"k{n}", n % 2, "png", image(n)) for n in range(6)), tmp_path, samples_per_shard=3, num_classes=2
    )


def members_of(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def cut(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at]


def flip(at: int, bit: int = 0) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def zero(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes(BLOCK) + data[at + BLOCK :]


# Members of a shard: k0.cls k0.png k1.cls k1.png k2.cls k2.png; `header` of k1.cls (2), `data` of k1.png (3).
DAMAGE = {
    "cut_at_a_member": lambda m: (cut(m[2].offset), m[2].offset),
    "cut_between_the_parts_of_a_sample": lambda m: (cut(m[3].offset), m[3].offset),
    "cut_in_a_header": lambda m: (cut(m[2].offset + 100), m[2].offset),
    "cut_in_data": lambda m: (cut(m[3].offset_data + 600), m[3].offset_data),
    "header_bit": lambda m: (flip(m[2].offset + 5), m[2].offset),
    "zeroed_header": lambda m: (zero(m[2].offset), m[2].offset),
    "data_bit": lambda m: (flip(m[3].offset_data + 300), m[3].offset_data),
}
FOUND_WITHOUT_INDEX = sorted(set(DAMAGE) - {"data_bit"})


def damage(kind: str, path: Path) -> int:
    """Damage the tar; returns the offset that the error must name."""
    change, offset = DAMAGE[kind](members_of(path))
    path.write_bytes(change(path.read_bytes()))
    return int(offset)


@pytest.mark.parametrize("kind", FOUND_WITHOUT_INDEX)
@pytest.mark.slow
def test_a_scan_refuses_damage_and_names_shard_and_offset(kind: str, index: ShardIndex) -> None:
    path = Path(index.urls[1])
    offset = damage(kind, path)
    with pytest.raises(ShardError, match=rf"{re.escape(str(path))}: offset {offset}: .*expected .*got"):
        list(scan_shards(index.urls, num_classes=2))


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_check_shards_with_an_index_finds_every_kind(kind: str, index: ShardIndex) -> None:
    path = Path(index.urls[1])
    offset = damage(kind, path)
    events = []
    with pytest.raises(ShardError, match=rf"{re.escape(str(path))}: offset {offset}: .*expected .*got"):
        events.extend(scan_shards(index.urls, expected=index))


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_reader_never_returns_other_bytes(kind: str, index: ShardIndex) -> None:
    """Reads go by offset: damage elsewhere in the shard does no harm, a cut or changed shard is an error."""
    path = Path(index.urls[1])
    damage(kind, path)
    errors = 0
    with ShardReader(index) as reader:
        for shard in range(2):
            for row in range(3):
                try:
                    assert reader.image_bytes(shard, row) == image(3 * shard + row)
                except ShardError as error:
                    errors += 1
                    assert str(path) in str(error)
    assert errors == {"header_bit": 0, "zeroed_header": 0, "data_bit": 1}.get(kind, 3)


def test_the_reader_names_key_offset_and_checksums_of_a_changed_image(index: ShardIndex) -> None:
    offset = damage("data_bit", Path(index.urls[1]))
    with (
        ShardReader(index) as reader,
        pytest.raises(
            ShardError, match=rf"offset {offset}: image of 'k4': expected 700 .*crc32c [0-9a-f]{{8}}, got 700"
        ),
    ):
        reader.image_bytes(1, 1)


def test_every_flipped_bit_is_refused_or_seen_or_harmless(index: ShardIndex) -> None:
    """A law over the whole file: harmless are only padding and other spellings of the checksum (space for zero)."""
    whole = Path(index.urls[0]).read_bytes()
    intact = scan_file(io.BytesIO(whole), "x.tar", SampleRule(2), "x.tar").digest()
    members = members_of(Path(index.urls[0]))
    padding = {i for m in members for i in range(m.offset_data + m.size, m.offset_data + -(-m.size // BLOCK) * BLOCK)}
    checksums = {i for m in members for i in range(m.offset + 148, m.offset + 156)}
    unnoticed = set()
    for at in range(0, len(whole), 3):
        try:
            if scan_file(io.BytesIO(flip(at, at % 8)(whole)), "x.tar", SampleRule(2), "x.tar").digest() == intact:
                unnoticed.add(at)
        except ShardError:
            continue
    assert unnoticed <= padding | checksums


def test_every_cut_is_refused(index: ShardIndex) -> None:
    """Until two zero blocks are there, an archive has no end."""
    whole = Path(index.urls[0]).read_bytes()
    last = members_of(Path(index.urls[0]))[-1]
    mark = last.offset_data + -(-last.size // BLOCK) * BLOCK + 2 * BLOCK
    for length in [*range(0, mark, 37), mark - 1]:
        with pytest.raises(ShardError, match="offset"):
            scan_file(io.BytesIO(whole[:length]), "x.tar", SampleRule(2), "x.tar")
    assert len(scan_file(io.BytesIO(whole[:mark]), "x.tar", SampleRule(2), "x.tar").label_N) == 3


def test_all_damaged_shards_are_reported_at_once(index: ShardIndex) -> None:
    for url in index.urls:
        damage("header_bit", Path(url))
    with pytest.raises(ShardError, match="2 of 2 shards") as caught:
        list(scan_shards(index.urls))
    assert all(url in str(caught.value) for url in index.urls)


# Archives that other programs make.


def archive(files: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT, **special: tarfile.TarInfo) -> io.BytesIO:
    """A tar of regular files, and after them members of other kinds."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in special.values():
            tar.addfile(info)
    file.seek(0)
    return file


LONG = "folder/" * 40 + "näme.png"


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_long_and_foreign_names_are_read_as_tarfile_reads_them(tar_format: int) -> None:
    names = [LONG, "a.cls", "b" * 99 + ".x", "ü.cls", "p" * 150 + "/" + "q" * 90 + ".png"]
    file = archive({name: name.encode() for name in names}, tar_format)
    assert [(m.name, d) for m, d in read_members(file, "x.tar")] == [(n, n.encode()) for n in names]


def test_ustar_prefixes_are_joined() -> None:
    name = "p" * 150 + "/" + "q" * 90 + ".png"
    file = archive({name: b"x"}, tarfile.USTAR_FORMAT)
    assert [m.name for m, _ in read_members(file, "x.tar")] == [name]


def test_offsets_and_data_agree_with_tarfile() -> None:
    file = archive({f"{size}.x": bytes([size % 256]) * size for size in (0, 1, 511, 512, 513, 3 << 20)})
    with tarfile.open(fileobj=file) as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar.getmembers()]
    file.seek(0)
    found = list(read_members(file, "x.tar"))
    assert [tuple(m) for m, _ in found] == expected
    assert all(len(d) == m.size and d == file.getvalue()[m.data_offset : m.data_offset + m.size] for m, d in found)


def test_directories_are_passed_over() -> None:
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    assert [m.name for m, _ in read_members(archive({"folder/a.png": b"x"}, folder=folder), "x.tar")] == [
        "folder/a.png"
    ]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a FIFO"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"7", "of unknown type"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_anything_but_regular_files_is_refused(kind: bytes, what: str) -> None:
    special = tarfile.TarInfo("b.png")
    special.type, special.linkname = kind, "/etc/passwd"
    with pytest.raises(ShardError, match=rf"x\.tar: offset 1024: member 'b\.png' is {what}"):
        list(read_members(archive({"a.png": b"x"}, special=special), "x.tar"))


def raw(name: bytes = b"a.png", size: bytes = b"00000000001\0", kind: bytes = b"0", data: bytes = b"x") -> bytes:
    """One member written by hand, with a right checksum."""
    header = bytearray(BLOCK)
    header[: len(name)] = name
    header[124:136] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % BLOCK)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return raw(kind=kind, size=b"%011o\0" % len(records), data=records)


END = bytes(2 * BLOCK)
PAX_PATH = b"16 path=b.png.x\n"
HOSTILE = {
    "a_size_beyond_the_file": (raw(size=b"00004000000\0") + END, "the file ends"),
    "a_size_that_no_image_has": (raw(size=b"77777777777\0") + END, "member too large"),
    "a_base_256_size_that_no_image_has": (raw(size=b"\x80" + (1 << 62).to_bytes(11, "big")) + END, "member too large"),
    "a_size_that_is_no_number": (raw(size=b"0x000000001\0") + END, "size"),
    "a_negative_base_256_size": (raw(size=b"\xff" * 12) + END, "size"),
    "an_empty_name": (raw(name=b"") + END, "member name"),
    "a_name_that_is_no_text": (raw(name=b"\xff\xfe.png") + END, "UTF-8"),
    "a_name_with_a_newline": (raw(name=b"a\nb.png") + END, "control characters"),
    "a_pax_record_without_end": (
        raw(kind=b"x", size=b"00000000020\0", data=b"99 path=b.png\n  ") + raw() + END,
        "pax record",
    ),
    "a_pax_size_that_is_no_number": (
        raw(kind=b"x", size=b"00000000013\0", data=b"11 size=-1\n") + raw() + END,
        "pax size",
    ),
    "a_global_pax_path": (pax(PAX_PATH, b"g") + raw() + END, "global pax"),
    "a_pax_header_without_member": (
        raw(kind=b"x", size=b"00000000020\0", data=PAX_PATH) + END,
        "after an extended header",
    ),
    "a_huge_pax_header": (raw(kind=b"x", size=b"00100000000\0") + END, "too large"),
    "a_directory_with_data": (raw(name=b"d/", kind=b"5") + END, "has data"),
    "one_zero_block": (raw() + bytes(BLOCK), "end-of-archive mark"),
    "something_after_the_mark": (raw() + END + bytes(4096) + b"\1", "nothing but zeros"),
    "a_second_archive_after_the_mark": (raw() + END + raw() + END, "nothing but zeros"),
    "an_empty_file": (b"", "end-of-archive mark"),
    "not_a_tar": (bytes(range(1, 200)) * 9, "checksum"),
    "gzip": (b"\x1f\x8b\x08" + bytes(range(200)) * 9, "compressed with gzip"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_archives_are_refused(name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(ShardError, match=rf"x\.tar: offset \d+: .*{message}"):
        list(read_members(io.BytesIO(data), "x.tar"))


def test_the_archive_written_by_hand_is_good_as_such() -> None:
    """So that the table above fails for the reason it names."""
    assert [m.name for m, _ in read_members(io.BytesIO(raw() + END), "x.tar")] == ["a.png"]
    assert [m.name for m, _ in read_members(io.BytesIO(pax(PAX_PATH) + raw() + END), "x.tar")] == ["b.png.x"]
