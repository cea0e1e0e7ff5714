"""model.safetensors, written and looked at; damage is tried in tests/test_checkpoint.py."""

import json
import struct

import pytest
import torch

from noble_fx import CheckpointError
from noble_fx.checkpoints.state import State
from noble_fx.checkpoints.weights_file import WEIGHTS, Stored, read, read_header, write


def write_raw(folder, header, data=b""):
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_what_is_written_is_read(tmp_path):
    tensors = {"a": torch.ones(2, 3), "b": torch.tensor(1), "c": torch.zeros(0, dtype=torch.bfloat16)}
    write(State(tensors, {}, {"again": "a"}), tmp_path / WEIGHTS)
    assert {name: (stored.shape, stored.dtype) for name, stored in read_header(tmp_path).items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
    }
    again = read(tmp_path)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_every_dtype_that_save_writes_is_read(tmp_path):
    from noble_fx.checkpoints.state import DTYPES

    tensors = {str(dtype): torch.zeros(2, dtype=dtype) for dtype in DTYPES}
    write(State(tensors, {}, {}), tmp_path / WEIGHTS)
    assert read_header(tmp_path) == {name: Stored((2,), tensor.dtype) for name, tensor in tensors.items()}


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"Is a directory.*; nothing was left there"):
        write(State({}, {}, {}), tmp_path / "folder")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[" * 1000, "truncated or no safetensors file"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "truncated or no safetensors file"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "truncated or no safetensors file"),
        ({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, "has a tensor of dtype F4"),
        ({"a": {"dtype": "F0", "shape": [8], "data_offsets": [0, 4]}}, "truncated or no safetensors file"),
    ],
)
def test_headers_that_are_damaged(header, message, tmp_path):
    write_raw(tmp_path, header, b"1234")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(tmp_path)
    assert str(caught.value).isprintable()


def test_a_size_that_no_tensor_can_have(tmp_path):
    write_raw(tmp_path, {"a": {"dtype": "F32", "shape": [0, 2**63 - 1, 4], "data_offsets": [0, 0]}})
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        read(tmp_path)


def test_a_name_that_stands_twice(tmp_path):
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    write_raw(tmp_path, f"{{{entry},{entry}}}", b"1234")
    with pytest.raises(CheckpointError, match="a stands in it twice"):
        read_header(tmp_path)
