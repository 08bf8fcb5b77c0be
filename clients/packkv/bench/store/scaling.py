"""How much a store delivers to many client processes together."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packkv.bench.store.blocks import Blocks
from packkv.bench.store.plan import Plan
from packkv.bench.store.processes import FetchingClient
from packkv.bench.store.transfers import Progress
from packkv.client import ClientConfig

_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Scaling:
    """What so many clients got together over one path, and how long each of their Gets took."""

    path: str
    clients: int
    gbs: float
    get_p50_ms: float
    get_max_ms: float


def measure_scaling(
    target: str,
    config: ClientConfig,
    paths: Sequence[str],
    blocks: Blocks,
    plan: Plan,
    folder: Path,
    progress: Progress,
) -> list[Scaling]:
    """Every path with every number of clients. All of them fetch the same blocks, which are there;
    together they fetch them about `plan.gets` times."""
    if not plan.clients:
        return []
    progress.begin("many clients", max(plan.clients) + len(paths) * len(plan.clients))
    start = {
        "target": target,
        "config": _plain(config),
        "names": [name.hex() for name in blocks.names],
    }
    with ExitStack() as stack:
        clients = []
        for number in range(max(plan.clients)):
            client = stack.enter_context(FetchingClient(f"client {number}", folder))
            client.tell(json.dumps(start))
            clients.append(client)
            progress.step()
        found = []
        for path in paths:
            for client in clients:
                client.tell(json.dumps({"path": path}))
                client.hear(_TIMEOUT_S)
            for count in plan.clients:
                found.append(_together(path, clients[:count], blocks, plan.gets))
                progress.step()
        return found


def _together(path: str, clients: Sequence[FetchingClient], blocks: Blocks, gets: int) -> Scaling:
    each = max(1, gets // len(clients))
    began = time.perf_counter()
    for client in clients:
        client.tell(json.dumps({"gets": each}))
    seconds = [json.loads(client.hear(_TIMEOUT_S)) for client in clients]
    took = time.perf_counter() - began
    moved = len(clients) * each * blocks.total_bytes
    return Scaling(
        path=path,
        clients=len(clients),
        gbs=moved / 1e9 / took,
        get_p50_ms=1000 * float(np.median(seconds)),
        get_max_ms=1000 * float(np.max(seconds)),
    )


def _plain(config: ClientConfig) -> dict[str, Any]:
    """For a pipe, where a token can go: a command line is seen by every user of a machine."""
    values = asdict(config)
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
