"""The gRPC API of PackKV store: `packkv.v1`, generated code committed beside its source."""
