"""`python -m benchmarks [NAME …]`: run benchmarks, print their tables, write `benchmarks/results/NAME.json`.

    cpu_linear   one site on the CPU; what runs where no name is given
    host         what a call costs in Python, by tiny layers, on the path of a GPU too
    step         a training step of the demo's model, in every way to add branches, eager and compiled
    onnx         whole models in ONNX Runtime on the CPU: some fifteen minutes
    onnx_layers  chains of layers there and in OpenVINO, by width: some fifteen minutes
    kernels      the generated kernels' FLOPs, bytes and resources, without a GPU: some ten minutes of compiling
    compress     perplexity of compressed models by method and size: some fifteen minutes
    compress_speed  what compressed models take in ONNX Runtime, by size and rows; needs transformers
    attach       branches for a 70B Llama on the meta device, beside LoRA's; needs transformers and peft
    prefix       loss against rank of branches trained at all ranks at once: some ten minutes
    moe          experts of a mixture, by how many there are; needs transformers
    gpu          layers and a training step on a GPU; needs one

The longest is a study of its own: `python -m benchmarks.effect --help`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks import attach, compress, cpu_linear, gpu, host, kernels, moe, onnx, onnx_layers, prefix, step

BENCHMARKS: dict[str, Callable[..., dict[str, object]]] = {
    "cpu_linear": cpu_linear.run,
    "host": host.run,
    "step": step.run,
    "onnx": onnx.run,
    "onnx_layers": onnx_layers.run,
    "compress": compress.run,
    "compress_speed": compress.run_speed,
    "attach": attach.run,
    "moe": moe.run,
    "prefix": prefix.run,
    "kernels": lambda rounds=0: kernels.run(),
    "gpu": gpu.run,
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run what was asked for, or the short one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(BENCHMARKS)} (default: cpu_linear)"
    )
    parser.add_argument("--rounds", type=int, help="timed rounds (default: each benchmark's own)")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    for name in args.names or ["cpu_linear"]:
        Console().print(f"[bold]{name}[/bold]")
        result = BENCHMARKS[name](**({"rounds": args.rounds} if args.rounds else {}))
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
