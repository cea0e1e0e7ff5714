"""What a plan says: ranks, sizes, errors, for every layer and for all together."""

import json

import pytest

import noble_fx
from noble_fx.compressing.plan import SIZES, CompressionPlan
from tests.compressing.models import batches, exact, with_branches


def plan(model=None, **settings) -> CompressionPlan:
    return noble_fx.compress(model or exact(32), batches(8), dry_run=True, **settings)


def test_it_counts_what_the_model_has_then():
    model = exact(32)
    made = plan(model, keep=0.6, bias=False)
    then = noble_fx.compress(model, batches(8), keep=0.6, bias=False)
    saved = made.dense - made.params
    count = sum(p.numel() for p in model.parameters())
    assert made.model_params == count
    assert sum(p.numel() for p in then.parameters()) == count - saved
    assert made.params <= 0.6 * made.dense
    ranks = {entry.site.fqn: entry.rank for entry in made.entries if entry.rank}
    assert ranks == {site.fqn: site.base_rank for site in noble_fx.sites(then) if site.base}


def test_its_sites_are_those_of_the_model_then():
    model = exact(32)
    made, then = plan(model, rank=8), noble_fx.compress(model, batches(8), rank=8)
    listed = {site.fqn: site for site in noble_fx.sites(then)}
    for entry in made.entries:
        site = listed[entry.site.fqn]
        assert entry.site.base_rank == site.base_rank
        assert entry.site.base_params == site.base_params
        assert entry.site.base_error == pytest.approx(site.base_error)


def test_errors_at_sizes():
    made = plan()
    assert all(entry.rank == 0 for entry in made.entries)
    for entry in made.entries:
        at = [entry.error_at(size) for size in SIZES]
        known = [error for error in at if error is not None]
        assert known == sorted(known)
        assert [error for _, _, error in entry.curve] == sorted((e for _, _, e in entry.curve), reverse=True)
        assert all(params < entry.dense for _, params, _ in entry.curve)
    assert made.at(0.9)[1] < made.at(0.5)[1]
    assert made.at(0.01) is None


def test_the_table():
    text = str(plan(keep=0.6))
    assert "of 12 chosen layers become two factors each, by 'activations'" in text
    assert "on 768 rows" in text
    assert "blocks.1.fc2" in text
    assert "ffn.out" in text
    assert "at 60%" in text
    assert "all of them" in text
    assert "no budget was given" in str(plan())
    assert "of the matrices alone" in str(noble_fx.compress(exact(32), method="svd", keep=0.5, dry_run=True))


def test_json():
    made = plan(with_branches(model=exact(32)), keep=0.6)
    said = json.loads(json.dumps(made.to_dict()))
    assert said["rows"] == 768
    assert said["planned_params"] == made.params
    assert {site["fqn"] for site in said["left_out"]} == {"head"}
    first = said["sites"][0]
    assert first["base_rank"] == made.entries[0].rank
    assert first["curve"][0].keys() == {"rank", "params", "error"}


def test_all_sites_are_there():
    model = exact(32)
    assert sorted(site.fqn for site in plan(model, keep=0.6).sites) == sorted(s.fqn for s in noble_fx.sites(model))
