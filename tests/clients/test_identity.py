import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packkv.errors import ConfigError
from packkv.identity import Difference, Namespace, rope_digest

NAMESPACE = Namespace(
    model="org/model",
    weights_digest="ab" * 32,
    adapter_digest=None,
    kv_dtype="bfloat16",
    codec={"id": "hybrid", "delta": 1.0, "v_levels": 8},
    profile_digest="cd" * 32,
    rope_digest="ef" * 32,
)
CHANGES: dict[str, Any] = {
    "model": "org/model-2",
    "weights_digest": "ac" * 32,
    "adapter_digest": "00" * 32,
    "kv_dtype": "float16",
    "codec": {"id": "hybrid", "delta": 1.0, "v_levels": 4},
    "profile_digest": None,
    "rope_digest": "ee" * 32,
    "block_size": 128,
    "layout_version": 3,
    "tenant_salt": "tenant-a",
}


def test_golden_root_hash_never_changes_within_a_layout() -> None:
    assert NAMESPACE.canonical_json().decode() == (
        '{"adapter_digest":null,"block_size":64,'
        '"codec":{"delta":1.0,"id":"hybrid","v_levels":8},"kv_dtype":"bfloat16",'
        '"layout_version":2,"model":"org/model","profile_digest":"' + "cd" * 32 + '",'
        '"rope_digest":"' + "ef" * 32 + '","tenant_salt":"","weights_digest":"' + "ab" * 32 + '"}'
    )
    assert (
        NAMESPACE.root_hash().hex()
        == "31ceaf3427533a17be84ba20201bffa71af5204ca5578eddb546377184bb0eb5"
    )


def test_the_table_of_changes_names_every_field() -> None:
    assert list(CHANGES) == [field.name for field in dataclasses.fields(Namespace)]


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_root_hash(field: str) -> None:
    other = dataclasses.replace(NAMESPACE, **{field: CHANGES[field]})
    assert other.root_hash() != NAMESPACE.root_hash()
    assert [difference.field.split(".")[0] for difference in NAMESPACE.differences(other)] == [
        field
    ]


@pytest.mark.parametrize("field", CHANGES)
def test_a_profile_is_shared_over_codecs_and_nothing_else(field: str) -> None:
    other = dataclasses.replace(NAMESPACE, **{field: CHANGES[field]})
    shares = field in ("codec", "profile_digest")
    assert (other.model_digest() == NAMESPACE.model_digest()) == shares


def test_a_difference_names_the_parameter_of_the_codec() -> None:
    other = dataclasses.replace(NAMESPACE, codec={"id": "hybrid", "delta": 0.5, "sinks": 4})
    assert NAMESPACE.differences(other) == [
        Difference("codec.delta", 1.0, 0.5),
        Difference("codec.v_levels", 8, None),
        Difference("codec.sinks", None, 4),
    ]
    assert NAMESPACE.differences(NAMESPACE) == []


TEXT = st.text(alphabet='a1é"', min_size=1, max_size=2)
NAMESPACES = st.builds(
    Namespace,
    model=TEXT,
    weights_digest=TEXT,
    adapter_digest=st.none() | TEXT,
    kv_dtype=TEXT,
    codec=st.dictionaries(TEXT, st.integers() | TEXT | st.booleans(), max_size=3),
    profile_digest=st.none() | TEXT,
    rope_digest=TEXT,
    block_size=st.integers(1, 4),
    tenant_salt=st.text(alphabet="ab", max_size=2),
)


@given(NAMESPACES, NAMESPACES)
def test_root_hashes_are_equal_exactly_if_nothing_differs(a: Namespace, b: Namespace) -> None:
    assert (a.root_hash() == b.root_hash()) == (a.differences(b) == [])


@given(NAMESPACES)
def test_a_namespace_survives_its_own_json(namespace: Namespace) -> None:
    assert Namespace.from_json(namespace.canonical_json()) == namespace
    assert Namespace.from_json(json.dumps(namespace.as_dict(), indent=4)) == namespace


def test_the_codec_cannot_be_changed_from_outside() -> None:
    codec: dict[str, object] = {"id": "raw"}
    namespace = dataclasses.replace(NAMESPACE, codec=codec)
    before = namespace.root_hash()
    codec["id"] = "hybrid"
    assert namespace.root_hash() == before


@pytest.mark.parametrize(
    "change",
    [
        {"model": ""},
        {"adapter_digest": ""},
        {"block_size": 0},
        {"block_size": True},
        {"codec": {"delta": float("nan")}},
        {"codec": {1: "a"}},
        {"codec": {"a": object()}},
        {"codec": {"a": "\ud800"}},
    ],
    ids=str,
)
def test_what_has_no_single_spelling_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(NAMESPACE, **change)


@pytest.mark.parametrize("text", ["", "[]", '{"model": "m"}', '{"colour": "red"}', "null"])
def test_json_that_is_no_namespace_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Namespace.from_json(text)


def test_a_salt_does_not_show_in_the_repr() -> None:
    assert "secret" not in repr(dataclasses.replace(NAMESPACE, tenant_salt="secret"))


@given(pairs=st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), unique=True, min_size=2))
def test_no_two_pairs_of_tenant_and_cache_salt_share(pairs: list[tuple[str, str]]) -> None:
    roots = {
        dataclasses.replace(NAMESPACE, tenant_salt=tenant).with_cache_salt(salt).root_hash()
        for tenant, salt in pairs
    }
    assert len(roots) == len(pairs)


def test_without_a_cache_salt_the_namespace_stays_what_it_is() -> None:
    assert NAMESPACE.with_cache_salt("") == NAMESPACE
    assert NAMESPACE.with_cache_salt("s").root_hash() != NAMESPACE.root_hash()


CONFIG = {"rope_theta": 1e4, "rope_scaling": None, "max_position_embeddings": 8192, "vocab_size": 9}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"vocab_size": 10}, True),
        ({"rope_theta": 1e6}, False),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, False),
        ({"rope_parameters": {"rope_type": "llama3"}}, False),
        ({"max_position_embeddings": 32768}, False),
        ({"sliding_window": 4096}, False),
        ({"sliding_window": None}, True),
        ({"text_config": {"rope_theta": 1e6}}, False),
        ({"text_config": {"vocab_size": 10, "rope_theta": None}}, True),
    ],
    ids=str,
)
def test_rope_digest_covers_what_moves_positions(change: dict[str, Any], same: bool) -> None:
    assert (rope_digest(CONFIG) == rope_digest(CONFIG | change)) == same
