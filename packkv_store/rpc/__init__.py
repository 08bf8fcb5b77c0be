"""gRPC: requests in, domain calls, replies out. Nothing is decided in here."""
