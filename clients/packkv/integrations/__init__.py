"""Connectors: one module per engine, imported only by those who use it."""
