"""Other code, other hash."""

from pathlib import Path

from noble_fx import own_code
from noble_fx.branches.keys import activation_key
from tests.fused_layer import layer_of


def test_the_digest_is_of_every_source_file(monkeypatch):
    own_code.digest.cache_clear()
    before = own_code.digest()
    own_code.digest.cache_clear()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * path.name.startswith("trace"))
    assert own_code.digest() != before
    own_code.digest.cache_clear()
    monkeypatch.undo()
    assert own_code.digest() == before


def test_a_key_is_of_the_code_too(monkeypatch):
    """AOTAutograd caches by Dynamo's graph, which has the key of σ and nothing else of what the operator does."""
    from noble_fx.branches import keys

    act = layer_of("gelu").noble.act
    key = activation_key(act, "gelu", 12)
    monkeypatch.setattr(keys, "_KEYS", {})
    assert activation_key(act, "gelu", 12) == key
    monkeypatch.setattr(keys, "_KEYS", {})
    monkeypatch.setattr(own_code, "digest", lambda: "another")
    assert activation_key(act, "gelu", 12) != key
