"""`packkv doctor`: why two workers do not share, or why a prompt was not found."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from packkv.cli.connection import AsJson, credentials_of
from packkv.cli.files import read_namespace, read_token_ids
from packkv.cli.output import print_json, print_table
from packkv.errors import ConfigError

if TYPE_CHECKING:
    from packkv.identity import Difference, Namespace

Finding = dict[str, object]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    ctx: typer.Context,
    namespaces: Annotated[
        list[Path], typer.Argument(metavar="OURS [THEIRS]", help="Namespaces, as JSON files.")
    ],
    tokens: Annotated[
        Path | None, typer.Option(help="Token ids to look for under each namespace.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", envvar="PACKKV_TARGET", help="The store to ask."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain why blocks are not shared.

    Compares two namespaces field by field: any difference means other hashes, so no block of one
    can ever match the other. With --tokens and --target it also asks a store what it has under
    each. Exit status 1 if they differ, or if the store lacks a block.

    \b
        packkv doctor worker-a.json worker-b.json
        packkv doctor worker-a.json --tokens prompt.json --target store-1:7437
    """
    if len(namespaces) > 2:
        raise ConfigError(f"doctor compares two namespaces, not {len(namespaces)}")
    if len(namespaces) == 1 and tokens is None:
        raise ConfigError("one namespace alone explains nothing: give a second, or --tokens")
    if (tokens is None) != (target is None) and tokens is not None:
        raise ConfigError("--tokens are looked for in a store: give --target as well")
    read = [read_namespace(file) for file in namespaces]
    differences = read[0].differences(read[1]) if len(read) == 2 else []
    findings = [
        _look_up(ctx, target, file, space, tokens)
        for file, space in zip(namespaces, read, strict=True)
        if tokens is not None and target is not None
    ]
    if as_json:
        _print_json(read, differences, findings)
    else:
        _print(read, differences, findings)
    if differences or any(found["miss"] for found in findings):
        raise typer.Exit(1)


def _look_up(
    ctx: typer.Context, target: str, file: Path, namespace: Namespace, tokens: Path
) -> Finding:
    from packkv.hashing import chain_hashes

    names = chain_hashes(namespace.root_hash(), read_token_ids(tokens), namespace.block_size)
    with credentials_of(ctx).connect(target) as client:
        found = client.match(names)
    return {
        "namespace": str(file),
        "asked_blocks": len(names),
        "matched_blocks": found.blocks,
        "miss": found.miss,
    }


def _print_json(
    namespaces: list[Namespace], differences: list[Difference], findings: list[Finding]
) -> None:
    print_json(
        {
            "root_hashes": [namespace.root_hash().hex() for namespace in namespaces],
            "equal": not differences,
            "differences": [_shown(difference)._asdict() for difference in differences],
            "store": findings,
        }
    )


def _print(
    namespaces: list[Namespace], differences: list[Difference], findings: list[Finding]
) -> None:
    if differences:
        typer.echo("These workers never share a block. They differ in:\n")
        print_table(("field", "ours", "theirs"), [_shown(one) for one in differences])
    elif len(namespaces) == 2:
        typer.echo(f"Equal: both have the root hash {namespaces[0].root_hash().hex()}.")
    for found in findings:
        typer.echo(
            f"{found['namespace']}: the store has {found['matched_blocks']} of "
            f"{found['asked_blocks']} blocks" + _EXPLAINED.get(str(found["miss"]), "")
        )


_EXPLAINED = {
    "absent": "; the next was never stored, or was evicted, has expired, or has been cleared",
    "corrupt": "; the next was damaged and is in quarantine",
    "heads": "; the next is stored without all KV heads",
}


def _shown(difference: Difference) -> Difference:
    """A salt is a secret of its tenant: its digest tells two apart without telling them."""
    if difference.field != "tenant_salt":
        return difference
    ours, theirs = (
        "sha256:" + sha256(str(value).encode()).hexdigest()[:16] if value else value
        for value in (difference.ours, difference.theirs)
    )
    return difference._replace(ours=ours, theirs=theirs)
