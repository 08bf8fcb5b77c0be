"""The store server: keeps blocks in RAM and on disk and serves them over gRPC."""
