"""One URL says all; what is wrong with it is said without repeating it."""

from pathlib import Path

import pytest

from packkv_store.errors import ConfigError
from packkv_store.index.redis.url import RedisUrl


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("redis://h", RedisUrl(kind="server", addresses=(("h", 6379),))),
        (
            "rediss://u:p%40@[::1]:1/2?ca=/ca&cert=/c&key=/k",
            RedisUrl(
                kind="server",
                tls=True,
                addresses=(("::1", 1),),
                db=2,
                user="u",
                password="p@",
                ca=Path("/ca"),
                cert=Path("/c"),
                key=Path("/k"),
            ),
        ),
        ("unix:///run/r?db=3", RedisUrl(kind="server", socket="/run/r", db=3)),
        ("redis://:p@h", RedisUrl(kind="server", addresses=(("h", 6379),), password="p")),
        (
            "redis+sentinel://h:1,i/blocks/4?sentinel_user=s&sentinel_password=t",
            RedisUrl(
                kind="sentinel",
                addresses=(("h", 1), ("i", 26379)),
                service="blocks",
                db=4,
                sentinel_user="s",
                sentinel_password="t",
            ),
        ),
        (
            "rediss+cluster://h,i:2",
            RedisUrl(kind="cluster", tls=True, addresses=(("h", 6379), ("i", 2))),
        ),
    ],
)
def test_a_url_says_where_and_how(text: str, means: RedisUrl) -> None:
    assert RedisUrl.parse(text) == means


@pytest.mark.parametrize(
    "text",
    [
        "http://u:secret@h",
        "redis+http://u:secret@h",
        "redis://u:secret@h,i",
        "redis://u:sec/ret@h",
        "redis://u:sec?ret@h",
        "redis://u:sec#ret@h",
        "redis://u:secret@h:99999",
        "redis://u:secret@h:port",
        "redis://u:secret@h/0/1",
        "redis://u:secret@h/-1",
        "redis://u:secret@h?secret=1",
        "redis+cluster://u:secret@h/1",
        "redis+sentinel://u:secret@h",
        "unix://u:secret@",
        "unix://u:secret@host/run/r",
        "redis://u:secret@[h",
        "secret",
        "",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RedisUrl.parse(text)
    assert str(refused.value).startswith("index: ")
    assert not any(part in str(refused.value) for part in ("secret", "sec", "ret"))


def test_the_text_of_a_url_has_no_credentials() -> None:
    text = "rediss+sentinel://u:secret@[::1]:1,i:2/blocks?sentinel_password=secret"
    url = RedisUrl.parse(text)
    assert str(url) == "rediss+sentinel://[::1]:1,i:2/blocks"
    assert "secret" not in repr(url)
