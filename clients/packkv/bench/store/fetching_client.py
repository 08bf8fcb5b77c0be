"""python -m packkv.bench.store.fetching_client: one of many clients that fetch at one time.

Reads lines of JSON: {"target", "config", "names"} first; then {"path"} opens that path, fetches
once and answers "ready"; {"gets"} fetches so often and answers with the seconds of each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packkv.client import Client, ClientConfig


def main(lines: Iterable[str]) -> None:
    """Does as the lines say, until there are no more."""
    commands = map(json.loads, lines)
    start: dict[str, Any] = next(commands)
    names = [bytes.fromhex(name) for name in start["names"]]
    client: Client | None = None
    for command in commands:
        if "path" in command:
            if client is not None:
                client.close()
            config = config_of({**start["config"], "paths": (command["path"],)})
            client = Client(start["target"], config=config)
            client.get(names)
            print("ready", flush=True)
        elif client is not None:
            print(json.dumps([_fetch(client, names) for _ in range(command["gets"])]), flush=True)


def config_of(values: dict[str, Any]) -> ClientConfig:
    """The settings that were sent as plain values."""
    files = ("tls_ca", "tls_cert", "tls_key")
    paths = {name: Path(values[name]) for name in files if values.get(name) is not None}
    return ClientConfig(**{**values, **paths})


def _fetch(client: Client, names: list[bytes]) -> float:
    began = time.perf_counter()
    found = client.get(names)
    seconds = time.perf_counter() - began
    if any(block.data is None for block in found):
        raise SystemExit("a block is missing")
    return seconds


if __name__ == "__main__":
    main(sys.stdin)
