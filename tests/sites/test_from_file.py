"""A file says what it is, and what is no such file is named."""

import dataclasses
import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

import noble_fx
from noble_fx import ExportError
from noble_fx.sites.from_file import _fits, read_account, read_sites
from tests.models import loud, tiny, tokens


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    model = loud(noble_fx.transform(tiny(layers=1), rank=4))
    noble_fx.export_onnx(model, (tokens(),), path, verify=False, join="down")
    return model, path


def test_sites_are_those_of_the_live_model(written):
    model, path = written
    assert noble_fx.sites(path) == noble_fx.sites(str(path)) == noble_fx.sites(model)


def test_explain_reads_the_account(written):
    model, path = written
    explanation = noble_fx.explain(path)
    text = str(explanation)
    assert "Tiny in model.onnx: 6 of 7 linear maps carry a branch" in text
    assert "pass join_down: 6 rewrites" in text
    assert "pass fold_branch: 6 rewrites" in text
    assert f"torch {torch.__version__}" in text
    assert "noble_fx::linear" not in text
    assert explanation.base_params == noble_fx.explain(model).base_params
    for told, site in zip(explanation.to_dict()["sites"], noble_fx.sites(model), strict=True):
        assert told == told | site.to_dict()
    assert explanation.branch_flops == noble_fx.explain(model).branch_flops
    assert explanation.acts == noble_fx.explain(model).acts
    assert explanation.to_networkx().nodes["blocks.0.fc1"]["sigma"] == "cosnet"
    assert 'subgraph g0["Tiny in model.onnx"]' in explanation.to_mermaid()


def test_files_that_are_not_ours(written, tmp_path):
    _, path = written
    raw = path.read_bytes()
    cases = {"half.onnx": raw[: len(raw) // 2], "empty.onnx": b"", "text.onnx": b"not a model at all"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        for read in (noble_fx.sites, noble_fx.explain):
            with pytest.raises(ExportError, match=f"{name} is truncated or no ONNX file"):
                read(tmp_path / name)
    with pytest.raises(ExportError, match="does not exist"):
        noble_fx.sites(tmp_path / "nothing.onnx")


def write_account(path, text=None):
    """An ONNX file of one Cos that carries `text` as its account."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    model = helper.make_model(helper.make_graph([helper.make_node("Cos", ["x"], ["y"])], "g", [x], [y]))
    if text is not None:
        helper.set_model_props(model, {"noble_fx": text})
    onnx.save(model, path)
    return path


def test_a_file_of_somebody_else(tmp_path):
    with pytest.raises(ExportError, match=r"plain.onnx was not written by noble_fx.export_onnx"):
        noble_fx.explain(write_account(tmp_path / "plain.onnx"))


SITE = {
    "fqn": "fc1", "role": "ffn.in", "kind": "Linear", "in_features": 4, "out_features": 8, "rank": 2,
    "selected": True, "reason": "named", "params": 26,
}  # fmt: skip
ACCOUNT = {"format": 1, "model": "Tiny", "sites": [SITE], "base_params": 32, "branch_params": 26}


def test_optional_entries_may_lack_and_unknown_ones_are_passed_over(tmp_path):
    """What an older version did not write, and what a newer one will."""
    path = write_account(tmp_path / "m.onnx", json.dumps(ACCOUNT))
    (site,) = noble_fx.sites(path)
    assert (site.fqn, site.params, site.aliases, site.unfused) == ("fc1", 26, (), "")
    assert "Tiny in m.onnx: 1 of 1 linear maps carry a branch" in str(noble_fx.explain(path))
    assert (read_account(path)["passes"], read_account(path)["settings"]) == ({}, {})
    newer = {**ACCOUNT, "of_tomorrow": [1], "sites": [{**SITE, "of_tomorrow": None, "aliases": ["fc1_again"]}]}
    (site,) = read_sites(write_account(tmp_path / "m.onnx", json.dumps(newer)))
    assert site.aliases == ("fc1_again",)
    assert {field.name: getattr(site, field.name) for field in dataclasses.fields(site)}["rank"] == 2


def test_text_of_a_file_is_never_markup(tmp_path):
    site = {**SITE, "fqn": "[/]\x1b[2J", "role": "[red]x", "reason": "line\nbreak"}
    account = {**ACCOUNT, "model": "[bold]M[/bold]", "sites": [site], "settings": {"[/]act": "[/b]\x9b"}}
    text = str(noble_fx.explain(write_account(tmp_path / "[x].onnx", json.dumps(account))))
    for shown in ("[bold]M[/bold] in [x].onnx: 1 of 1", "[/]\\x1b[2J", "[red]x", "line\\nbreak", "[/]act: [/b]\\x9b"):
        assert shown in text


def test_explain_reads_the_file_once(tmp_path, monkeypatch):
    path, loads = write_account(tmp_path / "m.onnx", json.dumps(ACCOUNT)), []
    load = onnx.load
    monkeypatch.setattr(onnx, "load", lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs))
    noble_fx.explain(path)
    assert len(loads) == 1


def without(name):
    return {key: value for key, value in ACCOUNT.items() if key != name}


@pytest.mark.parametrize(
    ("account", "message"),
    [
        ("", "cannot be read: Expecting value"),
        ("{", "cannot be read: Expecting property name"),
        ("[" * 200_000, "nested too deeply"),
        ('{"format": ' + "1" * 5000 + "}", "cannot be read|has format"),
        ('{"format": NaN}', "NaN is no number of JSON"),
        ('{"format": 1, "model": "\\ud800"}', "cannot be read: a text in it is no Unicode"),
        ("null", "it has no format"),
        ("[]", "it has no format"),
        ('"format"', "it has no format"),
        ("{}", "it has no format"),
        ({"format": 99}, "has format 99; this version reads 1: update noble_fx"),
        ({"format": [1]}, r"has format \[1\]; this version reads 1"),
        (without("model"), "'model' is missing"),
        (without("sites"), "'sites' is missing"),
        (without("base_params"), "'base_params' is missing"),
        ({**ACCOUNT, "model": 5}, "'model' is 5, which is no str"),
        ({**ACCOUNT, "sites": None}, "'sites' is None, which is no list"),
        ({**ACCOUNT, "sites": {"fc1": SITE}}, "'sites' is .*, which is no list"),
        ({**ACCOUNT, "sites": ["fc1"]}, "'sites' is .*, which is no list"),
        ({**ACCOUNT, "base_params": "32"}, "'base_params' is '32', which is no int"),
        ({**ACCOUNT, "base_params": True}, "'base_params' is True, which is no int"),
        ({**ACCOUNT, "branch_params": 2.5}, "'branch_params' is 2.5, which is no int"),
        ({**ACCOUNT, "settings": {"act": 5}}, "'settings' is .*, which is no dictionary"),
        ({**ACCOUNT, "passes": {"join_up": "6"}}, "'passes' is .*, which is no dictionary"),
        ({**ACCOUNT, "versions": []}, "'versions' is .*, which is no dictionary"),
        ({**ACCOUNT, "sites": [{}]}, "'fqn' of site '' is missing"),
        ({**ACCOUNT, "sites": [{**SITE, "rank": "2"}]}, "'rank' of site 'fc1' is '2', which is no int"),
        ({**ACCOUNT, "sites": [{**SITE, "selected": 1}]}, "'selected' of site 'fc1' is 1, which is no bool"),
        ({**ACCOUNT, "sites": [{**SITE, "aliases": "fc"}]}, "'aliases' of site 'fc1' is 'fc', which is no list"),
        ({**ACCOUNT, "sites": [{**SITE, "aliases": [5]}]}, "'aliases' of site 'fc1' is .*, which is no list"),
        ({**ACCOUNT, "sites": [{**SITE, "fqn": ["x"] * 9999}]}, "'fqn' of site .*, which is no str"),
    ],
)
def test_accounts_that_are_damaged(account, message, tmp_path):
    path = write_account(tmp_path / "m.onnx", account if isinstance(account, str) else json.dumps(account))
    for read in (noble_fx.sites, noble_fx.explain):
        with pytest.raises(ExportError, match=message) as caught:
            read(path)
        assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("name", ["", "nothing.onnx", "a\0b", "x" * 300])
def test_paths_of_no_file(name, tmp_path):
    for read in (noble_fx.sites, noble_fx.explain):
        with pytest.raises(ExportError, match=r"noble_fx.export_onnx\(model, …, path=…\) makes such a file"):
            read(tmp_path / name)


def test_types_of_fields_to_come():
    assert _fits(None, str | None)
    assert _fits("x", str | None)
    assert not _fits(5, str | None)
    assert _fits({"a": [1]}, dict[str, list[int]])
    assert not _fits({"a": ["1"]}, dict[str, list[int]])


def test_a_file_of_version_0_1_is_read():
    path = Path(__file__).parents[1] / "data" / "onnx_0_1.onnx"
    sites = noble_fx.sites(path)
    assert [site.fqn for site in sites if site.selected] == [
        f"blocks.0.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
    ]
    assert "6 of 7 linear maps carry a branch" in str(noble_fx.explain(path))
