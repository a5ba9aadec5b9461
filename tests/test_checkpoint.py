"""Files of tensors: read back exactly, and anything else refused by name and with what to do."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MICRO
from safetensors.torch import save_file

from minidalle import checkpoint
from minidalle.checkpoint import CheckpointError, config_from_dict, config_to_dict, load, save
from minidalle.clip import CLIPConfig
from minidalle.decoder import DecoderConfig

TENSORS = {
    "float32": torch.randn(3, 4),
    "bfloat16": torch.randn(5).bfloat16(),
    "float16": torch.randn(2, 1, 2).half(),
    "int64": torch.arange(3),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "strided": torch.randn(4, 3).T,
    "minus zero": torch.tensor([-0.0, 0.0]),
}
META = {"seed": 0, "config": {"widths": [1, 2]}, "name": 'é "quoted"'}


@pytest.fixture
def path(tmp_path) -> Path:
    """Save a file, and give its path."""
    save(tmp_path / "new" / "clip.safetensors", "clip", TENSORS, META)
    return tmp_path / "new" / "clip.safetensors"


def test_tensors_and_header_are_read_back_exactly(path):
    tensors, header = load(path, "clip")
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor), name
    assert tensors["minus zero"].signbit().tolist() == [True, False]
    assert {key: header[key] for key in META} == META


def test_saving_leaves_one_file_and_replaces_the_old_one(path):
    save(path, "clip", {"x": torch.ones(1)}, {})
    assert [file.name for file in path.parent.iterdir()] == ["clip.safetensors"]
    assert set(load(path, "clip")[0]) == {"x"}


def test_the_hash_tells_contents_apart(tmp_path):
    zeros, hashes = torch.zeros(2), set()
    others = ({"a": torch.ones(2)}, {"b": zeros}, {"a": zeros[:, None]}, {"a": zeros.int()})
    variants = [({"a": zeros}, {}), ({"a": zeros}, {"x": 1}), *((tensors, {}) for tensors in others)]
    for tensors, meta in [*variants, variants[0]]:
        save(tmp_path / "x.safetensors", "x", tensors, meta)
        hashes.add(load(tmp_path / "x.safetensors", "x")[1]["sha256"])
    assert len(hashes) == len(variants)


def refused(path: Path, kind: str = "clip") -> str:
    """Give the sentence with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load(path, kind)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message
    assert any(remedy in message for remedy in ("train it", "name a", "name the", "ask its owner")), message
    return message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "damaged" in refused(path)


@pytest.mark.parametrize("flip", [1, 255])
def test_no_flipped_byte_goes_unnoticed(path, flip):
    whole, unnoticed = path.read_bytes(), 0
    for at in random.Random(0).sample(range(len(whole)), 400):
        changed = bytearray(whole)
        changed[at] ^= flip
        path.write_bytes(changed)
        try:
            tensors, _ = load(path, "clip")
        except CheckpointError:
            continue
        unnoticed += 1  # the byte of a truth value: all but 0 mean the same
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert unnoticed <= 1


def test_altered_tensors_and_an_altered_header_are_refused(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "sha256" in refused(path)
    assert whole.count(rb"\"seed\": 0") == 1
    path.write_bytes(whole.replace(rb"\"seed\": 0", rb"\"seed\": 1"))
    assert "sha256" in refused(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"minidalle": "3"}])
def test_a_file_of_another_program_is_refused(path, metadata):
    save_file({"a": torch.ones(2)}, path, metadata=metadata)
    assert "not written by minidalle" in refused(path)


def test_what_is_no_safetensors_file_is_refused(path):
    save_file({"a": torch.ones(2)}, path, metadata={"minidalle": "{"})
    assert "no safetensors file" in refused(path)
    path.write_text("a red circle above a blue square " * 20)
    assert "no safetensors file" in refused(path)
    torch.save({"a": torch.ones(2)}, path)
    assert "no safetensors file" in refused(path)


def test_another_version_kind_or_place_is_refused(path, monkeypatch):
    assert 'holds a "clip"; a "prior" was expected' in refused(path, "prior")
    assert "does not exist" in refused(path.with_name("none.safetensors"))
    assert "is a folder" in refused(path.parent)
    assert "does not exist" in refused(path / "inside.safetensors")
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", checkpoint.FORMAT_VERSION + 1)
    assert "format version 2; this package reads 3" in refused(path)


def failing(*_) -> None:
    raise OSError(28, "No space left on device")


def interrupted(*_) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (failing, CheckpointError, r"clip\.safetensors could not be written .*No space left.*: make room"),
        (interrupted, KeyboardInterrupt, None),
    ],
)
def test_a_save_that_is_broken_off_leaves_the_old_file_and_nothing_else(path, monkeypatch, call, fault, error, message):
    """Whether the disk is full, or the process is stopped: half way, or when all is written and not yet in place."""
    monkeypatch.setattr(checkpoint.os, call, fault)
    with pytest.raises(error, match=message):
        save(path, "clip", {"x": torch.ones(1)}, {})
    assert [file.name for file in path.parent.iterdir()] == ["clip.safetensors"]
    assert set(load(path, "clip")[0]) == set(TENSORS)


def test_a_reader_sees_the_old_file_or_the_new_one_and_never_a_part(path, monkeypatch):
    seen, replace_file = [], checkpoint.os.replace

    def look(*names) -> None:
        seen.append(set(load(path, "clip")[0]))
        replace_file(*names)

    monkeypatch.setattr(checkpoint.os, "replace", look)
    save(path, "clip", {"x": torch.ones(1)}, {})
    assert seen == [set(TENSORS)] and set(load(path, "clip")[0]) == {"x"}


def test_tensors_that_were_read_do_not_change_with_the_file(path):
    tensors, _ = load(path, "clip")
    save(path, "clip", {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}, {})
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_header_is_read_without_the_tensors(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "safe_open", lambda *_, **__: pytest.fail("tensors were read"))
    assert checkpoint.read_header(path, "clip")["seed"] == 0


def test_a_disk_that_takes_no_more_leaves_the_old_file_and_nothing_else(path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # no file may grow beyond
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save(path, "clip", {"x": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in path.parent.iterdir()] == ["clip.safetensors"]
    assert set(load(path, "clip")[0]) == set(TENSORS)


def test_configs_survive_the_way_there_and_back(tmp_path):
    for config in MICRO.models.values():
        save(tmp_path / "x.safetensors", "x", {}, {"config": config_to_dict(config)})
        assert config_from_dict(type(config), load(tmp_path / "x.safetensors", "x")[1]["config"]) == config


def test_a_config_with_other_fields_is_refused():
    values = config_to_dict(replace(MICRO.models["clip"], width=32))
    with pytest.raises(ValueError, match="CLIPConfig has the fields"):
        config_from_dict(CLIPConfig, values | {"depth": 3})
    values.pop("width")
    with pytest.raises(ValueError, match="CLIPConfig has the fields"):
        config_from_dict(CLIPConfig, values)
    with pytest.raises(ValueError, match="UNetConfig has the fields"):
        config_from_dict(DecoderConfig, config_to_dict(MICRO.models["decoder"]) | {"unet": {}})
