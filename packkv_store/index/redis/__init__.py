"""The index of many nodes, in Redis: one server, Sentinel, or Redis Cluster."""
