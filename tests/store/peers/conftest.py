"""What tests of peers share with those of clusters."""

from tests.store.cluster.conftest import guarded, one_redis, patience, redis

__all__ = ["guarded", "one_redis", "patience", "redis"]
