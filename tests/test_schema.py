"""The operators' signatures: importing the package implements every one of them, and gives them shapes."""

import subprocess
import sys

import pytest
import torch

from noble_fx import schema

NAMES = [
    "linear",
    "linear_forward",
    "linear_backward",
    "linear_group",
    "linear_group_forward",
    "linear_group_backward",
    "joined_down",
    "joined_up",
    "grouped_product",
    "grouped_outer",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_has_an_implementation_and_a_fake_one(name):
    operator = getattr(torch.ops.noble_fx, name).default
    assert operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeExplicitAutograd)
    assert torch._library.simple_registry.singleton.find(f"noble_fx::{name}").fake_impl.kernel is not None


def test_the_signatures_can_be_named_without_the_implementations():
    code = (
        "import sys, types; package = types.ModuleType('noble_fx'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['noble_fx'] = package\n"
        "import noble_fx.schema as schema\n"
        "print(schema.LINEAR, any(name.startswith('noble_fx.ops') for name in sys.modules))"
    )
    folder = schema.__file__.rpartition("/")[0]
    answer = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["noble_fx.linear.default", "False"]
