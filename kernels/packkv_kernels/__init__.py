"""The codec: compresses K and V into blocks and attends over them as they are."""
