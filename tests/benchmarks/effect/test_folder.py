"""The study on disk: resumed where it stopped, refused where it is another one."""

from __future__ import annotations

import json

import pytest

from benchmarks.effect.folder import Study, StudyError, final_loss
from benchmarks.effect.run import Run

RECORD = {
    "task": "digits",
    "arm": "plain",
    "steps": 10,
    "lr": 0.001,
    "seed": 0,
    "diverged_at": None,
    "validation": [2.0],
}


def test_runs_are_there_again(tmp_path):
    Study(tmp_path / "study").add(RECORD)
    assert Study(tmp_path / "study").records == {Run("digits", "plain", 10, 0.001, 0): RECORD}


def test_a_line_that_was_cut_short_is_left_out_and_the_next_is_whole(tmp_path):
    study = Study(tmp_path)
    study.add(RECORD)
    with study.path.open("a") as file:
        file.write('{"task": "digi')
    again = Study(tmp_path)
    assert len(again.records) == 1
    again.add({**RECORD, "seed": 1})
    assert len(Study(tmp_path).records) == 2


def test_a_folder_of_other_settings_is_refused(tmp_path):
    Study(tmp_path)
    stored = json.loads((tmp_path / "study.json").read_text())
    stored["optimizer"]["clip"] = 2.0
    (tmp_path / "study.json").write_text(json.dumps(stored))
    with pytest.raises(StudyError, match="another optimizer"):
        Study(tmp_path)


def test_runs_without_settings_are_refused(tmp_path):
    Study(tmp_path).add(RECORD)
    (tmp_path / "study.json").unlink()
    with pytest.raises(StudyError, match="of which settings"):
        Study(tmp_path)


def test_a_task_may_come_later(tmp_path):
    Study(tmp_path)
    stored = json.loads((tmp_path / "study.json").read_text())
    del stored["tasks"]["digits"]
    (tmp_path / "study.json").write_text(json.dumps(stored))
    Study(tmp_path)
    stored["tasks"]["bytes128"]["width"] = 64
    (tmp_path / "study.json").write_text(json.dumps(stored))
    with pytest.raises(StudyError, match="another tasks"):
        Study(tmp_path)


def test_a_line_that_is_no_run_is_named(tmp_path):
    study = Study(tmp_path)
    study.path.write_text('{"task": "digits"}\n')
    with pytest.raises(StudyError, match="line 1 is no run"):
        Study(tmp_path)


def test_the_loss_of_a_run_that_diverged_is_infinite():
    assert final_loss(RECORD) == 2.0
    assert final_loss({**RECORD, "diverged_at": 3}) == float("inf")


def test_the_pace_of_other_tasks_is_kept(tmp_path):
    study = Study(tmp_path)
    assert study.pace() == {}
    study.keep_pace({"digits": {"paper": 1.5}})
    study.keep_pace({"bytes128": {"paper": 1.25}})
    assert Study(tmp_path).pace() == {"digits": {"paper": 1.5}, "bytes128": {"paper": 1.25}}
