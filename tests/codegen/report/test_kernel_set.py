"""noble_fx.kernels: the text of a layer's kernels, and what the compiler makes of it."""

import ast

import pytest
import torch

import noble_fx
from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.report.kernel_set import dtype_of
from noble_fx.errors import ConfigError, KernelError

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))


def small(**settings) -> noble_fx.KernelSet:
    return noble_fx.kernels(**{"in_features": 64, "out_features": 48, "rank": 8, **settings})


def test_the_sources_are_python_with_one_kernel_each():
    kernel_set = small()
    assert "linear_up_forward" in kernel_set.sources
    for name, source in kernel_set.sources.items():
        functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        assert functions[-1] == name


def test_the_table_has_a_row_a_kernel():
    kernel_set = small(act="silu", dtype=torch.float16)
    shown = str(kernel_set)
    assert shown.startswith("silu, 64 → 48, rank 8, fp16")
    assert all(name in shown for name in kernel_set.kernels)


@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_the_preset_decides_whether_there_is_a_bias_of_down(preset):
    assert small(preset=preset).plan.layer.down_bias is (preset == "reference")


def test_several_layers_that_read_the_same_x():
    kernel_set = small(out_features=(48, 16, 16))
    assert kernel_set.plan.layer.out_features == (48, 16, 16)
    assert "y_2_ptr" in kernel_set.sources["linear_up_forward"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_compile_reports_every_kernel_for_a_gpu_that_is_not_there(target):
    resources = small().only("linear_up_forward").compile(target)
    assert list(resources) == ["linear_up_forward"]
    assert resources["linear_up_forward"].local_bytes == 0


def test_another_target_may_run_other_kernels():
    """What one kernel holds on sm_90 is cut on sm_80."""
    kernel_set = noble_fx.kernels("cosnet", in_features=256, out_features=256, rank=128)
    there = kernel_set.on("sm_80").kernels
    assert "activation_backward_1" in there.keys() - kernel_set.kernels.keys()
    with pytest.raises(KernelError, match="sm_80 does not run bottleneck_backward, but bottleneck_forward, "):
        kernel_set.only("bottleneck_backward").compile("sm_80")


def test_an_activation_of_ones_own():
    class Square(torch.nn.Module):
        def forward(self, h):
            return h * h

    assert small(act=lambda rank: Square()).sources


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"act": "cosnot"}, "act='cosnot' is unknown; nearest: 'cosnet'"),
        ({"in_features": 0}, "in_features=0 must be an integer ≥ 1"),
        ({"out_features": (8, True)}, "out_features=True must be an integer ≥ 1"),
        ({"rank": 0.5}, "rank=0.5 must be an integer ≥ 1"),
        ({"dtype": "bf16"}, "dtype='bf16' is no torch.dtype"),
    ],
)
def test_what_cannot_be_is_an_error(settings, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        small(**settings)


def test_what_has_no_kernel_says_why():
    with pytest.raises(KernelError, match=r"no kernels for torch.float64"):
        small(dtype=torch.float64)
    with pytest.raises(KernelError, match="rank 300 is over"):
        small(in_features=512, out_features=512, rank=300)


def test_one_kernel_by_name():
    kernel_set = small()
    assert isinstance(kernel_set.only("linear_up_forward").kernels["linear_up_forward"], Kernel)
    with pytest.raises(ConfigError, match="no kernel 'linear_up'; nearest: 'linear_up_forward'"):
        kernel_set.only("linear_up")


def test_writing_a_folder(tmp_path):
    kernel_set = small()
    kernel_set.write(tmp_path / "out")
    assert {path.stem: path.read_text() for path in (tmp_path / "out").iterdir()} == kernel_set.sources
    with pytest.raises(KernelError, match="exists"):
        kernel_set.write(tmp_path / "out")
    with pytest.raises(KernelError, match="None is no path"):
        kernel_set.write(None)


@pytest.mark.parametrize("name", ["notes.txt", "mine.py"])
def test_a_folder_is_replaced_only_where_it_holds_nothing_but_kernels(name, tmp_path):
    small().write(tmp_path / "out")
    small().only("linear_up_forward").write(tmp_path / "out", overwrite=True)
    assert [path.stem for path in (tmp_path / "out").iterdir()] == ["linear_up_forward"]
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(KernelError, match=f"not replaced, for {name}, which is no generated kernel, would be lost"):
        small().write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_names_of_dtypes():
    assert dtype_of("bf16") == dtype_of("bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype 'fp8' has no kernels"):
        dtype_of("fp8")
