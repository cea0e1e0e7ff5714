"""Addresses and pieces of a workspace; what is started with them is in `test_execute.py`."""

import pytest
import torch

from noble_fx.runtime.bound_call import BoundCall, aligned
from noble_fx.runtime.call import Buffer, Call


@pytest.mark.parametrize(("addresses", "expected"), [([], True), ([16, 4096], True), ([16, 40], False), ([2], False)])
def test_aligned_addresses(addresses, expected):
    assert aligned(addresses) is expected


def test_scratch_lies_in_one_workspace_at_multiples_of_256_bytes():
    buffers = (
        Buffer(1, ("rows", 3), torch.float32, scratch=True),
        Buffer(2, ("rows", 3), torch.float32, scratch=False),
        Buffer(3, (100,), torch.bfloat16, scratch=True),
    )
    call = Call(("x",), buffers, (), (), {"y": 2}, ("x", "h", "y", "t"), 1)
    bound = BoundCall(call, [], 7, {1: (7, 3), 2: (7, 3), 3: (100,)}, torch.device("cpu"))
    assert bound._pieces == [(1, 0), (3, 256)]
    assert bound._workspace().numel() == 512
    assert [slot for slot, _ in bound._made] == [2]
