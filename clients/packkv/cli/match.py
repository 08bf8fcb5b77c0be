"""`packkv match`: how much of a prompt a store has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from packkv.cli.connection import DEFAULT_TARGET, AsJson, Target, credentials_of
from packkv.cli.files import chosen_root, read_hashes, read_token_ids
from packkv.cli.output import print_json, size
from packkv.errors import ConfigError

if TYPE_CHECKING:
    from packkv.client import Match


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(match)


def match(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Token ids, or with --hashes chain hashes.")],
    target: Target = DEFAULT_TARGET,
    namespace: Annotated[
        Path | None, typer.Option(help="The namespace of the tokens (a JSON file).")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Or its root hash.")] = None,
    hashes: Annotated[
        bool, typer.Option("--hashes", help="FILE holds chain hashes, 64 hex digits each.")
    ] = False,
    block_size: Annotated[int, typer.Option(help="Tokens of a block.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Show the longest prefix that a store has; exit status 1 if it has none.

    \b
        packkv match tokens.json --namespace llama.json
        packkv match names.txt --hashes --json
    """
    names = read_hashes(file) if hashes else _names(file, chosen_root(namespace, root), block_size)
    with credentials_of(ctx).connect(target) as client:
        found = client.match(names)
    if as_json:
        print_json(_as_dict(found, names, block_size))
    else:
        typer.echo(_sentence(found, names, block_size))
    if not found.blocks:
        raise typer.Exit(1)


def _names(file: Path, root_hash: bytes | None, block_size: int) -> list[bytes]:
    from packkv.hashing import chain_hashes

    if root_hash is None:
        raise ConfigError("token ids mean nothing without --namespace or --root")
    try:
        return chain_hashes(root_hash, read_token_ids(file), block_size)
    except ValueError as reason:
        raise ConfigError(f"{file}: {reason}") from reason


def _as_dict(found: Match, names: list[bytes], block_size: int) -> dict[str, object]:
    return {
        "asked_blocks": len(names),
        "matched_blocks": found.blocks,
        "matched_tokens": found.blocks * block_size,
        "bytes": sum(found.lengths),
        "miss": found.miss,
        "blocks": [
            {"chain_hash": name.hex(), "bytes": length, "tier": tier}
            for name, length, tier in zip(names, found.lengths, found.tiers, strict=False)
        ],
    }


def _sentence(found: Match, names: list[bytes], block_size: int) -> str:
    tiers = ", ".join(f"{found.tiers.count(tier)} in {tier}" for tier in sorted(set(found.tiers)))
    text = (
        f"{found.blocks} of {len(names)} blocks ({found.blocks * block_size} tokens, "
        f"{size(sum(found.lengths))})"
    )
    text += f": {tiers}" if tiers else ""
    return text + (f"; block {found.blocks} is {found.miss}" if found.miss else "")
