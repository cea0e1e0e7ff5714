import sys

import pytest

from noble_fx.errors import ConfigError
from noble_fx.report import templates


def test_whatever_a_template_is_given_is_escaped_and_on_one_line():
    made = templates.templates().from_string("<a title='{{ text }}'>{{ number | thousands }}</a>")
    assert made.render(text="'<b>\n\ud800", number=12345) == r"<a title='&#39;&lt;b&gt;\n\ud800'>12,345</a>"


def test_json_holds_no_tag_and_keeps_its_order():
    made = templates.templates().from_string("{{ value | tojson }}")
    assert made.render(value={"b": "</script>", "a": 1}) == r'{"b": "\u003c/script\u003e", "a": 1}'


@pytest.mark.parametrize("missing", ["jinja2", "pygments"])
def test_a_missing_package_is_named_with_the_remedy(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    templates.templates.cache_clear()
    with pytest.raises(ConfigError, match=rf'{missing}, which is not installed: pip install "noble-fx\[report\]"'):
        templates.templates()
