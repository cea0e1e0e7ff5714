"""`python -m benchmarks.effect STAGE`: how many steps branches save, every arm at its own best rate.

    screen    every arm over few steps, one seed: which ones are worth more
    final     a few arms over many steps, several seeds
    pace      what a step of an arm takes over plain's: in turns, with nothing else running
    report    the tables of what is done

Resumable: each run is a line of `runs.jsonl`, and what is there is not run again. Stop it at any time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.effect import pace, plan, report
from benchmarks.effect.arms import ARMS
from benchmarks.effect.figure import draw
from benchmarks.effect.folder import Study, StudyError, final_loss
from benchmarks.effect.run import Record, Run, train
from benchmarks.effect.tasks import TASKS

FOLDER = Path(__file__).parents[1] / "results" / "effect"


def run_all(study: Study, wanted: Callable[[], Iterable[Run]], jobs: int, evaluations: int) -> None:
    """Run what is wanted until nothing is, so many at a time, one thread each."""
    # Spawned, not forked: a child with torch's threads half copied may hang.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        going: dict[Future[Record], Run] = {}
        while True:
            started = set(going.values())
            for run in wanted():
                if len(going) < jobs and run not in started:
                    going[pool.submit(train, run, evaluations)] = run
            if not going:
                return
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                del going[future]
                study.add(future.result())
                _say(future.result())


def _say(record: Record) -> None:
    end = f"diverged at {record['diverged_at']}" if record["diverged_at"] else f"loss {final_loss(record):.4f}"
    ms = 1e3 * record["seconds_per_step"]
    print(
        f"{record['task']:<13} {record['arm']:<22} lr {record['lr']:<8g} seed {record['seed']}  "
        f"{record['steps']} steps  {end}  {ms:.0f} ms a step",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.effect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("screen", "final", "pace", "report"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the study (default: benchmarks/results/effect)")
    tasks = {"choices": TASKS, "default": ["bytes128"], "metavar": "TASK"}
    parser.add_argument("--tasks", nargs="+", **tasks, help=f"{', '.join(TASKS)} (default: bytes128)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="default: all")
    parser.add_argument("--steps", type=int, help="of a run (default: 600 to screen, 4000 in the end)")
    parser.add_argument("--seeds", type=int, default=3, help="of a finalist (default: 3)")
    parser.add_argument("--figure", type=Path, help="of the report: draw the curves of --tasks into this SVG")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    return parser


def main() -> None:
    """Run one stage."""
    parser = _parser()
    args = parser.parse_args()
    try:
        study = Study(args.folder)
    except StudyError as error:
        parser.error(str(error))
    if args.stage == "screen":
        wanted = partial(plan.screening, study.records, args.tasks, args.arms, args.steps or 600)
        run_all(study, wanted, args.jobs, evaluations=12)
    elif args.stage == "pace":
        study.keep_pace({task: pace.measure(TASKS[task], args.arms) for task in args.tasks})
    elif args.stage == "report":
        print("\n".join(report.tables(study.records, study.pace())))
        if args.figure:
            draw(study.records, dict.fromkeys(args.tasks, args.steps or 4000), args.figure)
    else:
        wanted = partial(plan.finals, study.records, args.tasks, args.arms, args.steps or 4000, args.seeds)
        run_all(study, wanted, args.jobs, evaluations=40)


if __name__ == "__main__":
    main()
