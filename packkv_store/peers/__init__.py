"""Other nodes, over gRPC: the calls of packkv.v1.BlockStore that clients make, made by a node."""
