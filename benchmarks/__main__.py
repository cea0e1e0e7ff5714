"""`python -m benchmarks [NAME …]`: run the short benchmarks, print their tables, write `benchmarks/results/NAME.json`.

The long ones are run by name: `python benchmarks/demo_ratio.py --jobs 2` takes about an hour.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from benchmarks import cpu_linear, onnx

BENCHMARKS = {"cpu_linear": cpu_linear.run, "onnx": onnx.run}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(BENCHMARKS)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, help="timed rounds (default: each benchmark's own)")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    for name in args.names or BENCHMARKS:
        Console().print(f"[bold]{name}[/bold]")
        result = BENCHMARKS[name](**({"rounds": args.rounds} if args.rounds else {}))
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
