"""Files that are refused, and files that others may read: each fault in one sentence, and none mistaken for another."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from minidalle import checkpoint
from minidalle.checkpoint import (
    HEADER,
    AccessError,
    CheckpointError,
    MissingError,
    brief,
    config_from_dict,
    config_to_dict,
    digest,
    find_folder,
    load,
    load_model,
    read_header,
    save,
    save_model,
    write_whole,
)
from minidalle.clip import CLIP, CLIPConfig
from minidalle.decoder import DecoderConfig
from minidalle.prior import DiffusionPrior, PriorConfig
from minidalle.unet import UNetConfig

SMALL = CLIPConfig(
    vocab_size=9, context_length=4, image_size=8, embed_dim=8, width=8, image_depth=1, text_depth=1, num_heads=2
)
POSIX = pytest.mark.skipif(os.name != "posix", reason="rights of other kinds there")


def forge(path: Path, tensors: dict, **entries) -> Path:
    """Write a file whose hash is right and whose header says what it likes."""
    header = {"format_version": checkpoint.FORMAT_VERSION, "kind": "clip", **entries}
    header["sha256"] = digest(tensors, header)
    path.write_bytes(to_bytes(tensors, metadata={HEADER: json.dumps(header)}))
    return path


def raw(path: Path, metadata: object, body: bytes = b"", **tensors) -> Path:
    """Write a safetensors file by hand."""
    head = metadata if isinstance(metadata, bytes) else json.dumps({"__metadata__": metadata, **tensors}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)
    return path


def one_sentence(error: BaseException, path: Path) -> None:
    said = str(error)
    assert str(path) in said and "\n" not in said and said.isprintable() and len(said) < 300 + len(str(path))


@POSIX
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_files_are_readable_by_whom_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save(tmp_path / "new" / "a.safetensors", "clip", {"x": torch.ones(2)}, {})
        write_whole(tmp_path / "b.jsonl", b"text")
        save_model(tmp_path, CLIP(SMALL), {})
    finally:
        os.umask(before)
    for path in (tmp_path / "new" / "a.safetensors", tmp_path / "b.jsonl", tmp_path / "clip.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o777 & ~umask


def test_missing_forbidden_and_damaged_are_three_sentences(tmp_path, monkeypatch):
    path = tmp_path / "clip.safetensors"
    with pytest.raises(MissingError, match="does not exist") as missing:
        load(path, "clip")
    one_sentence(missing.value, path)
    with pytest.raises(MissingError, match="does not exist"):
        load(path / "below" / "a.safetensors", "clip")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(MissingError, match="does not exist"):
        load(tmp_path / "file" / "clip.safetensors", "clip")

    path.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="damaged") as damaged:
        load(path, "clip")
    assert type(damaged.value) is CheckpointError

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    for call in ("open", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, call, refuse)
            with pytest.raises(AccessError, match="may not be read"):
                load(path, "clip")


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from minidalle.checkpoint import AccessError, CheckpointError, find_folder, load, save
import torch
os.setgid(65534), os.setuid(65534)
root = Path(sys.argv[1])
for act in (
    lambda: load(root / "closed" / "clip.safetensors", "clip"),
    lambda: load(root / "open" / "clip.safetensors", "clip"),
    lambda: find_folder(root / "closed" / "inner"),
    lambda: save(root / "open" / "new.safetensors", "clip", {"x": torch.ones(1)}, {}),
):
    try:
        act()
    except CheckpointError as error:
        print(type(error).__name__, error)
"""


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_without_rights_is_told_of_rights(tmp_path):
    for folder, mode in (("closed", 0o700), ("open", 0o755)):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "clip.safetensors", "clip", {"x": torch.ones(1)}, {})
        (tmp_path / folder).chmod(mode)
    (tmp_path / "open" / "clip.safetensors").chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/") and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    ran = subprocess.run([sys.executable, "-c", UNPRIVILEGED, tmp_path], capture_output=True, text=True, timeout=100)
    lines = ran.stdout.splitlines()
    assert len(lines) == 4, ran.stderr
    assert all(line.startswith("AccessError") and "may not be read" in line for line in lines[:3])
    assert lines[3].startswith("CheckpointError") and "could not be written (Permission denied)" in lines[3]


@POSIX
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="no regular file"):
        read_header(tmp_path / "pipe.safetensors", "clip")
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path / "folder.safetensors", "clip")


@pytest.mark.parametrize(
    "source",
    ["~nobody-of-this-name/run", "nowhere", "x" * 5000, "a\0b", "", "line\nbreak\x1b[2J", None, 3, b"tiny", ["a"]],
)
def test_what_is_no_folder_is_told_so(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if source == "":
        assert find_folder(source) == Path()
        return
    with pytest.raises(MissingError, match="neither a folder nor the name of shipped weights") as error:
        find_folder(source)
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_weights_that_were_installed_come_before_those_of_a_checkout(tmp_path, monkeypatch):
    folders = [tmp_path / root / "tiny" for root in ("installed", "checkout")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "clip.safetensors").touch()
    monkeypatch.setattr(checkpoint, "SHIPPED", tuple(folder.parent for folder in folders))
    assert find_folder("tiny") == folders[0]


NESTED = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    "metadata",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"__metadata__": ' * 50_000 + b"1" + b"}" * 50_000,
        b"null",
        b"[]",
        b'"text"',
        b"1" * 10_000,
        b"\xff\xfe{}",
        ["a", "list"],
        "text",
        {HEADER: 3},
        {HEADER: NESTED},
        {HEADER: '{"a": ' * 40 + "1" + "}" * 40},
        {HEADER: '{"a":' + "9" * 10_000 + "}"},
        {HEADER: "[1, 2]"},
        {HEADER: "{}"},
        {HEADER: json.dumps({"format_version": 2, "kind": "clip"})},
        {HEADER: json.dumps({"format_version": 2, "kind": "clip", "sha256": 7})},
        {HEADER: json.dumps({"format_version": 2, "kind": "\x1b[2J" + "k" * 5000})},
        {HEADER: json.dumps({"format_version": {"deep": ["\x07"] * 3000}})},
    ],
    ids=range(19),
)
def test_headers_that_lie_or_nest_are_refused_in_a_sentence(tmp_path, metadata):
    path = raw(tmp_path / "clip.safetensors", metadata)
    for read in (read_header, load):
        with pytest.raises(CheckpointError) as error:
            read(path, "clip")
        one_sentence(error.value, path)


@pytest.mark.parametrize("levels", [33, 100, 900])
def test_a_header_that_is_right_but_for_its_nesting_is_refused(tmp_path, levels):
    header = {"format_version": 2, "kind": "clip", "sha256": "0" * 64}
    text = json.dumps(header)[:-1] + ', "world": ' + "[" * levels + "]" * levels + "}"
    path = raw(tmp_path / "clip.safetensors", {HEADER: text})
    with pytest.raises(CheckpointError, match="nested"):
        read_header(path, "clip")
    assert read_header(raw(path, {HEADER: json.dumps({**header, "world": [[[[1]]]]})}), "clip")["world"] == [[[[1]]]]


@pytest.mark.parametrize("length", [0, 1, 2**23 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_a_claimed_length_is_not_believed(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(tmp_path / "a.safetensors", "clip")


def tensor_entry(shape: list, begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "entry",
    [
        tensor_entry([2**40], 0, 2**42),
        tensor_entry([2**33, 2**33], 0, 4),
        tensor_entry([-1], 0, 4),
        tensor_entry([1], 4, 8),
        tensor_entry([1], 0, 4, "F99"),
        tensor_entry([4], 0, 4, "F8_E4M3"),
    ],
)
def test_tensors_that_lie_about_their_size_are_refused(tmp_path, entry):
    header = {"format_version": 2, "kind": "clip", "sha256": "0" * 64}
    path = raw(tmp_path / "a.safetensors", {HEADER: json.dumps(header)}, b"\0" * 4, x=entry)
    with pytest.raises(CheckpointError) as error:
        load(path, "clip")
    one_sentence(error.value, path)


@POSIX
def test_a_file_larger_than_its_model_is_refused_before_memory_is_taken(tmp_path):
    header = {"format_version": 2, "kind": "clip", "sha256": "0" * 64, "config": config_to_dict(SMALL)}
    size = 2**35  # bytes; a hole in the file, so the disk has none of them
    path = raw(tmp_path / "clip.safetensors", {HEADER: json.dumps(header)}, x=tensor_entry([size // 4], 0, size))
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("no file of that size here")
    with pytest.raises(CheckpointError, match=r"has 343\d+ bytes; at most \d+ were expected"):
        load_model(CLIP, tmp_path)


BAD_NUMBERS = [True, False, "8", None, -8, 0, 8.0, 1e999, float("nan"), [8], {"n": 8}, 2**16 + 1, 2**70]


@pytest.mark.parametrize("bad", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["width", "image_size", "image_depth", "num_heads", "vocab_size", "patch_size"])
def test_numbers_of_a_config_are_whole_positive_and_bounded(tmp_path, name, bad):
    model = CLIP(SMALL)
    forge(tmp_path / "clip.safetensors", model.state_dict(), config={**config_to_dict(SMALL), name: bad})
    with pytest.raises(CheckpointError, match="does not fit") as error:
        load_model(CLIP, tmp_path)
    one_sentence(error.value, tmp_path)


@pytest.mark.parametrize("name", ["width", "image_size", "image_depth", "num_heads", "vocab_size", "pool_dim"])
def test_a_size_of_nothing_is_refused_where_it_does_not_mean_none(name):
    with pytest.raises(ValueError, match=f"{name} is 0; 1 to [0-9]+ was expected"):
        config_from_dict(CLIPConfig, {**config_to_dict(SMALL), name: 0})
    plain = config_to_dict(UNetConfig(context_dim=0))
    assert config_from_dict(UNetConfig, plain).context_dim == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"image_depth": 200, "width": 60_000, "embed_dim": 60_000},
        {"image_size": 65_536, "patch_size": 4},
        {"patch_size": 3},
        {"num_heads": 3},
        {"vocab_size": 65_536},
        {"width": 16},
        {"text_depth": 256},
    ],
    ids=str,
)
def test_sizes_of_a_config_are_compared_with_the_tensors_first(tmp_path, changed):
    forge(tmp_path / "clip.safetensors", CLIP(SMALL).state_dict(), config={**config_to_dict(SMALL), **changed})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(CLIP, tmp_path)


@pytest.mark.parametrize("config", [None, [], "clip", 3, {}, {"wide": 1}, {"x" * 9000: 1}, {"\x1b[2J": 1}])
def test_a_config_of_another_shape_is_refused(tmp_path, config):
    forge(tmp_path / "clip.safetensors", CLIP(SMALL).state_dict(), config=config)
    with pytest.raises(CheckpointError, match="does not fit") as error:
        load_model(CLIP, tmp_path)
    one_sentence(error.value, tmp_path)


@pytest.mark.parametrize(
    "levels", [[1] * 17, [1] * 100_000, [True], ["1"], [None], [-1], [[1]], 3, "12", {"1": 1}], ids=str
)
def test_lists_of_a_config_are_short_and_of_whole_numbers(levels):
    values = config_to_dict(DecoderConfig())
    values["unet"]["channel_mults"] = levels
    with pytest.raises(ValueError, match="channel_mults"):
        config_from_dict(DecoderConfig, values)


@given(
    st.builds(
        DecoderConfig,
        unet=st.builds(
            UNetConfig,
            channels=st.sampled_from([8, 16, 48]),
            channel_mults=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
            attention_levels=st.lists(st.integers(0, 0), max_size=1).map(tuple),
            context_dim=st.just(64),
        ),
        embed_dim=st.integers(1, 2**16),
    )
)
def test_a_config_comes_back_from_json_as_it_was(config):
    assert config_from_dict(DecoderConfig, json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_not_finite_is_neither_written_nor_read(tmp_path, bad, dtype):
    path = tmp_path / "clip.safetensors"
    save(path, "clip", {"x": torch.ones(3, dtype=dtype)}, {})
    whole = path.read_bytes()
    tensors = {"whole": torch.arange(4), "x": torch.tensor([1.0, bad, 1.0], dtype=dtype)}
    with pytest.raises(CheckpointError, match="was not written: x holds numbers that are not finite"):
        save(path, "clip", tensors, {})
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ["clip.safetensors"]
    forge(path, tensors)
    with pytest.raises(CheckpointError, match=r"not finite \(in x\)"):
        load(path, "clip")


def test_a_model_that_is_not_finite_is_never_a_finished_one(tmp_path):
    model = DiffusionPrior(PriorConfig(embed_dim=8, text_width=8, width=8, depth=1, num_heads=2))
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        save_model(tmp_path, model, {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save(path, "clip", {"x": torch.ones(2)}, {})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"could not be written \(No space left on device\)"):
        save(path, "clip", {"x": torch.zeros(2)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert torch.equal(load(path, "clip")[0]["x"], torch.ones(2))


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace

    def fsync(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("rename"), replace(*a)))
    write_whole(tmp_path / "a", b"1")
    assert done == ["file", "rename", "folder"] if os.name == "posix" else done[:2] == ["file", "rename"]


@given(st.one_of(st.text(max_size=400), st.recursive(st.none() | st.text(), lambda x: st.lists(x, max_size=3))))
def test_a_text_from_a_file_becomes_one_short_printable_line(text):
    line = brief(text)
    assert len(line) <= 125 and (line.isprintable() or not line)
