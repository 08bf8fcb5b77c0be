"""PackKV store for Python: share the KV cache of a prefix between inference workers."""
