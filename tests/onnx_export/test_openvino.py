"""What this package writes, read by OpenVINO in a process that knows neither this package nor ONNX Runtime."""

import subprocess
import sys
import textwrap

import onnx
import onnx.inliner
import pytest
import torch
from torch import nn

import noble_fx
from tests.models import loud

READ = textwrap.dedent("""
    import sys, torch, openvino

    assert "noble_fx" not in sys.modules
    inputs, outputs = torch.load("expected.pt")
    for file in sys.argv[1:]:
        made = openvino.convert_model(torch.export.load(file)) if file.endswith(".pt2") else file
        run = openvino.compile_model(made, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        worst = max(abs(run([x.numpy()])[0] - y.numpy()).max() for x, y in zip(inputs, outputs, strict=True))
        print(file, "the same" if worst < 1e-5 else f"differs by {worst}")
""")


@pytest.mark.long
@pytest.mark.parametrize("act", ["cosnet", "gelu_net"])
def test_openvino_reads_programs_and_files(act, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    model = loud(noble_fx.transform(model, rank=3, act=act, select=".*", seed=0)).eval()
    inputs = [torch.randn(2, 5, 8), torch.randn(1, 3, 8)]
    given = (inputs[0],)
    torch.save((inputs, [model(x).detach() for x in inputs]), tmp_path / "expected.pt")
    for fold in (True, False):
        torch.export.save(noble_fx.export(model, given, fold=fold), tmp_path / f"fold_{fold}.pt2")
    noble_fx.export_onnx(model, given, tmp_path / "plain.onnx")
    noble_fx.export_onnx(model, given, tmp_path / "functions.onnx", functions=True)
    # OpenVINO does not look into functions of a file; onnx writes them out.
    written_out = onnx.inliner.inline_local_functions(onnx.load(tmp_path / "functions.onnx"))
    onnx.save(written_out, tmp_path / "inlined.onnx")
    files = ["fold_True.pt2", "fold_False.pt2", "plain.onnx", "inlined.onnx"]
    command = [sys.executable, "-W", "ignore", "-c", READ, *files]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.stdout.splitlines() == [f"{file} the same" for file in files], answer.stderr[-2000:]
