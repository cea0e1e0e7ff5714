"""Export a model with branches to ONNX and run the file. It is compared with PyTorch before it appears.

python examples/05_export_onnx.py
"""

import tempfile
from pathlib import Path

import torch

import noble_fx

model = torch.nn.TransformerEncoder(
    torch.nn.TransformerEncoderLayer(d_model=128, nhead=4, batch_first=True), num_layers=2
).eval()
model = noble_fx.transform(model, rank=16, select="ffn", seed=0).eval()
x = torch.randn(2, 16, 128)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "encoder.onnx"
    report = noble_fx.export_onnx(model, (x,), path)
    print(report)
    print(noble_fx.explain(path))  # a file knows its sites and how it was made

    session = noble_fx.runtime.OnnxModel(path)  # CUDA where ONNX Runtime has it
    for rows, length in ((2, 16), (3, 7)):  # batch and sequence are free
        x = torch.randn(rows, length, 128)
        print(f"[{rows}, {length}, 128]: largest difference {(session(x) - model(x)).abs().max():.1e}")
