"""`packkv demo`: two worker processes share a prefix through a store, and what that gained."""
