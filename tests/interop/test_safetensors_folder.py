import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zoo.errors import UserError
from zoo.interop.safetensors_folder import INDEX_FILE, SafetensorsFolder
from zoo.interop.safetensors_writer import TensorToWrite, write_folder

VALUES = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=ml_dtypes.bfloat16),
    "c": np.full((3, 1), 0.5, np.float16),
}


def write(folder: Path, values=VALUES, max_shard_bytes=10**9) -> list[Path]:
    folder.mkdir(exist_ok=True)
    tensors = [TensorToWrite(name, array.shape, array.dtype) for name, array in values.items()]
    return write_folder(folder, tensors, lambda name: values[name], max_shard_bytes)


@pytest.mark.parametrize(("max_shard_bytes", "files"), [(10**9, 1), (24, 2), (1, 3)])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, max_shard_bytes, files):
    written = write(tmp_path / "model", max_shard_bytes=max_shard_bytes)
    assert len(written) == files
    folder = SafetensorsFolder(tmp_path / "model")
    for name, array in VALUES.items():
        assert (folder.tensors[name].shape, folder.tensors[name].dtype) == (array.shape, array.dtype.name)
        assert folder.read(name).tobytes() == array.tobytes()


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    (file,) = write(tmp_path / "model")
    read = load_file(file)
    assert {name: array.tobytes() for name, array in read.items()} == {k: v.tobytes() for k, v in VALUES.items()}


def test_the_index_names_every_tensor_and_the_total_size(tmp_path):
    write(tmp_path / "model", max_shard_bytes=24)
    index = json.loads((tmp_path / "model" / INDEX_FILE).read_text())
    assert index["metadata"] == {"total_parameters": 13, "total_size": 24 + 8 + 6}
    assert set(index["weight_map"]) == set(VALUES)
    assert set(index["weight_map"].values()) == {f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)}


def refused(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(UserError) as raised:
        opened = SafetensorsFolder(folder)
        for name in opened.tensors:
            opened.read(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_truncated_file_is_named_with_the_first_tensor_that_is_cut_off(tmp_path):
    (file,) = write(tmp_path / "model")
    data = file.read_bytes()
    file.write_bytes(data[:-10])
    message = refused(tmp_path / "model")
    assert "model.safetensors is truncated" in message
    assert "tensor b" in message


def test_a_file_cut_off_in_its_header_is_named(tmp_path):
    (file,) = write(tmp_path / "model")
    file.write_bytes(file.read_bytes()[:20])
    assert "model.safetensors is truncated or not a safetensors file" in refused(tmp_path / "model")


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"not a safetensors file, surely", struct.pack("<Q", 4) + b"{{{{"])
def test_a_file_that_is_something_else_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refused(tmp_path)


def test_a_git_lfs_pointer_is_told_apart_from_a_damaged_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 12\n")
    assert "Git LFS pointer" in refused(tmp_path)


def test_a_tensor_with_nan_is_named(tmp_path):
    for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
        array = np.zeros((4, 5), dtype)
        array[2, 3] = np.nan
        save_file({"good": np.zeros(3, np.float32), "bad": array}, tmp_path / "model.safetensors")
        assert "tensor bad holds NaN" in refused(tmp_path)


def test_a_shard_that_does_not_exist_is_named(tmp_path):
    write(tmp_path / "model", max_shard_bytes=1)
    (tmp_path / "model" / "model-00002-of-00003.safetensors").unlink()
    message = refused(tmp_path / "model")
    assert "tensor b in model-00002-of-00003.safetensors, which does not exist" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a": "model-00002-of-00003.safetensors"}, "model-00002"),
        ({"d": "model-00001-of-00003.safetensors"}, "lists tensor d"),
        ({"a": "../elsewhere.safetensors"}, "outside of the folder"),
        ({"a": 7}, "is not a safetensors index"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, change, said):
    write(tmp_path / "model", max_shard_bytes=1)
    path = tmp_path / "model" / INDEX_FILE
    index = json.loads(path.read_text())
    index["weight_map"] |= change
    path.write_text(json.dumps(index))
    assert said in refused(tmp_path / "model")


def test_a_tensor_that_the_index_leaves_out_is_named(tmp_path):
    write(tmp_path / "model", max_shard_bytes=24)
    path = tmp_path / "model" / INDEX_FILE
    index = json.loads(path.read_text())
    del index["weight_map"]["c"]
    path.write_text(json.dumps(index))
    assert f"holds tensor c, but {INDEX_FILE} does not list it" in refused(tmp_path / "model")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "\ud800"])
def test_a_malformed_index_is_refused(tmp_path, content):
    (tmp_path / INDEX_FILE).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert INDEX_FILE in refused(tmp_path)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    assert "model.safetensors" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pickles" in refused(tmp_path)


def test_a_single_file_beside_an_index_is_refused_as_ambiguous(tmp_path):
    write(tmp_path / "model", max_shard_bytes=1)
    write(tmp_path / "model")
    assert "both" in refused(tmp_path / "model")
