"""The device that is chosen, and what is said of files that ONNX Runtime does not open."""

import onnxruntime
import pytest
import torch

from noble_fx import ExportError
from noble_fx.onnx_export import open_session as module
from noble_fx.onnx_export.open_session import MissingKernel, choose_device, open_session

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch):
    """A machine as it seems: with so many GPUs, and ONNX Runtime built for them or not."""

    def pretend(count, built=True):
        providers = [module.CUDA, module.CPU] if built else [module.CPU]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_the_device_that_is_there(gpus):
    gpus(2)
    assert choose_device("auto") == choose_device("cuda") == choose_device("cuda:0") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu") == CPU
    with pytest.raises(ExportError, match="device='cuda:2' is not there: this machine has 2 GPUs"):
        choose_device("cuda:2")


@pytest.mark.parametrize(("count", "built"), [(0, True), (1, False)])
def test_no_cuda(count, built, gpus):
    gpus(count, built)
    assert choose_device("auto") == CPU
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ExportError, match="no CUDA; install onnxruntime-gpu"):
            choose_device(device)


@pytest.mark.parametrize(
    "device", ["tpu", "cuda:x", "cuda:", "cpu:0", "auto:0", "", "cuda:²", "cuda:" + "9" * 5000, None]
)
def test_devices_that_are_unknown(device):
    with pytest.raises(ExportError, match="is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:0'"):
        choose_device(device)


def test_a_file_that_is_cut_short(exported_add, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(exported_add[1].read_bytes()[:200])
    with pytest.raises(ExportError, match=r"cut.onnx is truncated, or no ONNX file that ONNX Runtime can run"):
        open_session(tmp_path / "cut.onnx", CPU)


def test_threads_and_device_reach_the_session(exported_add, monkeypatch):
    calls = []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: calls.append((options, providers))
    )
    open_session(exported_add[1], CPU, threads=3)
    open_session(exported_add[1], torch.device("cuda", 1), cuda_graph=True)
    (options, on_cpu), (_, on_cuda) = calls
    assert options.intra_op_num_threads == 3
    assert on_cpu == [module.CPU]
    assert on_cuda == [(module.CUDA, {"device_id": "1", "enable_cuda_graph": "1"}), module.CPU]


def test_an_operator_without_kernel_is_named(exported_add, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("NOT_IMPLEMENTED : Could not find an implementation for Cos(7) node with name 'node_cos'")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(MissingKernel, match=r"no kernel on cpu for this file: Cos\(7\)$"):
        open_session(exported_add[1], CPU)
