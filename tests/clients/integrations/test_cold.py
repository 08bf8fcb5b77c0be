"""A model over blocks that travelled cold says what it says over blocks that did not."""

from __future__ import annotations

from typing import Any

import pytest

from packkv.prefix_cache import PrefixCacheConfig
from tests.clients.integrations.test_hf import connected, llama, tokens


@pytest.mark.usefixtures("compiled_cold")
@pytest.mark.parametrize("codec", ["packkv", "hybrid:delta=1.4,v_levels=4"])
def test_cold_blocks_change_no_token(store: Any, codec: str) -> None:
    ids, said = tokens(450), {}
    for cold in ("never", "always"):
        prefix = PrefixCacheConfig(deadline_s=60, cold=cold)
        # a name of its own: a block that is there is not published again
        settings: Any = {"codec": codec, "prefix": prefix, "model_name": f"{cold} {codec}"}
        model = llama()
        with connected(model, store.target, **settings) as writer:
            writer.generate(model, ids, max_new_tokens=2, do_sample=False)
            assert writer.flush(60)
            published = writer.counters
        assert published.published_blocks == 7
        assert published.published_cold == (7 if cold == "always" else 0)
        model = llama()
        with connected(model, store.target, **settings) as reader:
            found = reader.generate(model, ids, max_new_tokens=12, do_sample=False)
            assert reader.counters.hit_tokens == 448
            assert reader.counters.loaded_cold == published.published_cold
            assert reader.counters.fetched_bytes == published.published_bytes
        said[cold] = found.tolist()
    assert said["always"] == said["never"]
