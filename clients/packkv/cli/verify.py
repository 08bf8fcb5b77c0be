"""`packkv verify`: walks a store and checks every byte of what it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Final

import typer

from packkv.cli.connection import DEFAULT_TARGET, AsJson, Target, credentials_of
from packkv.cli.output import print_json, size
from packkv.errors import ConfigError, ProtocolViolation, StoreFailure

if TYPE_CHECKING:
    from packkv.client import Client, Fetched, Listed

# every page and every fetch has this long at least, also under a short --timeout
_LEAST_S: Final = 30.0
# damaged blocks are counted without limit, and named up to this many
_MAX_NAMED: Final = 1000
_MIB: Final = 1 << 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(verify)


@dataclass(slots=True)
class Findings:
    """What a walk has found so far. `left` are blocks that the store let go before their turn,
    `cold` sound ones in cold form."""

    blocks: int = 0
    bytes: int = 0
    cold: int = 0
    corrupt: int = 0
    missing: int = 0
    left: int = 0
    damage: list[dict[str, str]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.corrupt and not self.missing

    def note(self, block: Listed, state: str, message: str) -> None:
        """A damaged block: `state` is "corrupt" or "missing"."""
        setattr(self, state, getattr(self, state) + 1)
        if len(self.damage) < _MAX_NAMED:
            name = block.chain_hash.hex()
            self.damage.append({"chain_hash": name, "state": state, "message": message})


def verify(
    ctx: typer.Context,
    target: Target = DEFAULT_TARGET,
    batch_mib: Annotated[
        int, typer.Option(min=1, max=1024, help="Payloads in memory at one time, or one block.")
    ] = 16,
    as_json: AsJson = False,
) -> None:
    """Fetch every block of a store and check every byte; exit status 1 if any is damaged.

    Of each block: that it comes, that its name, namespace, length and position are those in its
    head, and that head and sections have the digests that they should. Blocks that are on disk
    alone are read from there, and stay in RAM like any that are fetched. Only what the store
    itself holds for the tenant of the token is checked, and the token must be an admin's.

    \b
        packkv verify
        packkv --token "$TOKEN" --tls verify --target store-1:7437 --json
    """
    try:
        import_module("packkv_kernels.format.payload")
    except ImportError as reason:
        raise ConfigError(
            f"verify needs the codec: pip install 'packkv[kernels]' ({reason})"
        ) from reason
    credentials = credentials_of(ctx)
    began = time.monotonic()
    with credentials.connect(target) as client, _progress(client) as advance:
        walk = Walk(client, batch_mib * _MIB, max(credentials.timeout_s, _LEAST_S))
        for listed in walk.batches():
            walk.check(listed)
            advance(len(listed))
    _report(walk.findings, target, time.monotonic() - began, as_json)
    if not walk.findings.sound:
        raise typer.Exit(1)


@dataclass(slots=True)
class Walk:
    """One pass over a store.

    Args:
        batch_bytes: fetched at one time; a block that is larger comes alone.
        deadline_s: of each call.
    """

    client: Client
    batch_bytes: int
    deadline_s: float
    findings: Findings = field(default_factory=Findings)

    def batches(self) -> Iterator[list[Listed]]:
        """All blocks of the store, as they are fetched together."""
        after = b""
        while page := self.client.page(after, deadline_s=self.deadline_s):
            batch: list[Listed] = []
            length = 0
            for block in page:
                if batch and length + block.length > self.batch_bytes:
                    yield batch
                    batch, length = [], 0
                batch.append(block)
                length += block.length
            yield batch
            after = page[-1].chain_hash

    def check(self, listed: list[Listed]) -> None:
        """Fetch these blocks and note what is wrong with them."""
        try:
            fetched = self._fetch(listed)
        except (StoreFailure, ProtocolViolation):
            # one of them ended the stream that all of them came on
            for block in listed:
                self._check_alone(block)
            return
        for block, found in zip(listed, fetched, strict=True):
            self._check_block(block, found)

    def _check_alone(self, block: Listed) -> None:
        try:
            (found,) = self._fetch([block])
        except (StoreFailure, ProtocolViolation) as failure:
            self.findings.blocks += 1
            self.findings.note(block, "corrupt", str(failure))
            return
        self._check_block(block, found, suspect=True)

    def _fetch(self, listed: list[Listed]) -> list[Fetched]:
        return self.client.get(
            [block.chain_hash for block in listed],
            max_bytes=sum(block.length for block in listed),
            deadline_s=self.deadline_s,
        )

    def _check_block(self, block: Listed, found: Fetched, suspect: bool = False) -> None:
        """`suspect`: it may have ended a stream before, and the store has put it aside since."""
        if found.data is not None:
            self.findings.bytes += len(found.data)
            state, message = "corrupt", self._damage(block, found.data)
        elif found.miss == "corrupt" or (suspect and not self._is_listed(block)):
            state, message = "corrupt", "the store found that a checksum is wrong"
        elif self._is_listed(block):
            state, message = "missing", f"listed, and not to be had: {found.miss}"
        else:
            self.findings.left += 1
            return
        self.findings.blocks += 1
        if message is not None:
            self.findings.note(block, state, message)

    def _damage(self, block: Listed, data: memoryview) -> str | None:
        """What is wrong with a payload; None when nothing is."""
        from packkv_kernels.errors import PayloadError
        from packkv_kernels.format.payload import Expectation, Form, read_payload

        if len(data) != block.length:
            return f"{len(data)} bytes came, and {block.length} are listed"
        expectation = Expectation(
            tokens=block.tokens,
            root_hash=block.root_hash,
            chain_hash=block.chain_hash,
            first_token=block.first_token,
        )
        try:
            self.findings.cold += read_payload(data, expectation).header.form is Form.COLD
        except PayloadError as error:
            return str(error)
        return None

    def _is_listed(self, block: Listed) -> bool:
        """Whether the store still says that it has the block: evictions go on meanwhile."""
        before = int.from_bytes(block.chain_hash, "big") - 1
        after = b"" if before < 0 else before.to_bytes(len(block.chain_hash), "big")
        page = self.client.page(after, 1, deadline_s=self.deadline_s)
        return bool(page) and page[0].chain_hash == block.chain_hash


@contextmanager
def _progress(client: Client) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how far the walk is; gives what tells it of more blocks."""
    from rich.console import Console
    from rich.progress import Progress

    # of all tenants: with more than one the walk ends before the bar does
    total = client.stats().blocks
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("blocks", total=total)
        yield lambda count: bar.advance(task, count)


def _report(findings: Findings, target: str, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "target": target,
                "sound": findings.sound,
                "blocks": findings.blocks,
                "bytes": findings.bytes,
                "cold": findings.cold,
                "corrupt": findings.corrupt,
                "missing": findings.missing,
                "left": findings.left,
                "damage": findings.damage,
                "seconds": round(seconds, 3),
            }
        )
        return
    for one in findings.damage:
        typer.echo(f"{one['state']} {one['chain_hash']}: {one['message']}")
    words = "all sound" if findings.sound else f"{findings.corrupt} corrupt"
    words += f", {findings.missing} missing" if findings.missing else ""
    words += f"; {findings.cold} in cold form" if findings.cold else ""
    words += f"; {findings.left} left the store before their turn" if findings.left else ""
    typer.echo(f"{findings.blocks} blocks, {size(findings.bytes)}: {words} ({seconds:.1f} s)")
