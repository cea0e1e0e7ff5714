import noble_fx
from noble_fx.report import kernels
from tests.models import Gamma, tiny, transformed


def test_every_kind_of_layer_has_its_kernels_and_the_first_their_text():
    found = kernels.layers(noble_fx.explain(transformed("modules")))
    assert [each.account.sites for each in found] == [6, 2, 2, 2]
    shown = [[source.code is not None for source in each.sources] for each in found]
    assert all(shown[0])
    assert all(shown[1])
    assert not any(shown[2])
    names = [source.kernel.name for source in found[0].sources]
    assert "linear_up_forward" in names
    assert found[0].sources[0].lines > 20


def test_the_text_is_highlighted_and_escaped():
    code = kernels.layers(noble_fx.explain(transformed("modules")))[0].sources[0].code
    assert '<span class="k">' in code
    plain = code.striptags() if hasattr(code, "striptags") else code
    assert "tl.load" in plain
    assert str(kernels._highlighted("a < b & '<i>'\n")).count("&lt;") == 2


def test_no_kernels_where_there_are_none():
    assert kernels.layers(noble_fx.explain(noble_fx.transform(tiny(), rank=4, act=Gamma))) == []
    assert kernels.layers(noble_fx.explain(tiny())) == []
