"""Files of tensors: read back exactly, and anything else refused by name and with what to do."""

import ast
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MICRO
from safetensors.torch import save_file

import minidalle
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
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
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
        assert torch.equal(tensors[name].nan_to_num(7.0), tensor.nan_to_num(7.0)), name
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
    assert any(remedy in message for remedy in ("train it", "copy or train it again", "name a", "name the")), message
    return message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "truncated" in refused(path)


@pytest.mark.parametrize("flip", [1, 255])
def test_no_flipped_byte_goes_unnoticed(path, flip):
    whole = path.read_bytes()
    for at in random.Random(0).sample(range(len(whole)), 400):
        changed = bytearray(whole)
        changed[at] ^= flip
        path.write_bytes(changed)
        refused(path)


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
    assert "does not exist" in refused(path.parent)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", checkpoint.FORMAT_VERSION + 1)
    assert "format version 1; this package reads 2" in refused(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    def half(tensors, target, metadata):
        target.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(CheckpointError, match=r"clip\.safetensors could not be written .*No space left.*: make room"):
        save(path, "clip", {"x": torch.ones(1)}, {})
    assert [file.name for file in path.parent.iterdir()] == ["clip.safetensors"]
    assert set(load(path, "clip")[0]) == set(TENSORS)


def test_a_save_that_is_broken_off_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    def half(tensors, target, metadata):
        target.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save(path, "clip", {"x": torch.ones(1)}, {})
    assert [file.name for file in path.parent.iterdir()] == ["clip.safetensors"]
    assert set(load(path, "clip")[0]) == set(TENSORS)


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
    for config in (MICRO.clip, MICRO.prior, MICRO.decoder):
        save(tmp_path / "x.safetensors", "x", {}, {"config": config_to_dict(config)})
        assert config_from_dict(type(config), load(tmp_path / "x.safetensors", "x")[1]["config"]) == config


def test_a_config_with_other_fields_is_refused():
    values = config_to_dict(replace(MICRO.clip, width=32))
    with pytest.raises(ValueError, match="CLIPConfig has the fields"):
        config_from_dict(CLIPConfig, values | {"depth": 3})
    values.pop("width")
    with pytest.raises(ValueError, match="CLIPConfig has the fields"):
        config_from_dict(CLIPConfig, values)
    with pytest.raises(ValueError, match="UNetConfig has the fields"):
        config_from_dict(DecoderConfig, config_to_dict(MICRO.decoder) | {"unet": {}})


def test_the_package_unpickles_nothing():
    for file in Path(minidalle.__file__).parent.glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                assert not {"pickle", "dill", "joblib"} & set(names), file
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save"), file
