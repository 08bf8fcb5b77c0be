"""`packkv inspect`: what a payload says of itself, after proving that it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from packkv.cli.connection import DEFAULT_TARGET, AsJson, Target, credentials_of
from packkv.cli.files import parse_hash
from packkv.cli.output import print_json, print_table, size
from packkv.errors import ConfigError

if TYPE_CHECKING:
    from packkv_kernels.format.payload import Payload


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(inspect)


def inspect(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(metavar="FILE|HASH", help="A payload, or a block's name.")],
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Check a payload and show its header and the sizes of its sections.

    Exit status 1 if it is damaged, or no store has it.

    \b
        packkv inspect block.packkv
        packkv inspect 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    """
    try:
        from packkv_kernels.errors import PayloadError
        from packkv_kernels.format.payload import read_payload
    except ImportError as reason:
        raise ConfigError(
            f"inspect needs the codec: pip install 'packkv[kernels]' ({reason})"
        ) from reason
    data = _read(ctx, what, target)
    try:
        payload = read_payload(data)
    except PayloadError as damage:
        if as_json:
            print_json({"sound": False, "reason": damage.reason, "message": str(damage)})
        else:
            typer.echo(f"not sound ({damage.reason}): {damage}", err=True)
        raise typer.Exit(1) from damage
    if as_json:
        print_json(_as_dict(payload))
    else:
        _print(payload)


def _read(ctx: typer.Context, what: str, target: str) -> bytes | memoryview:
    file = Path(what)
    if file.is_file():
        return file.read_bytes()
    try:
        chain_hash = parse_hash(what)
    except ConfigError as reason:
        raise ConfigError(f"{what!r} is neither a file nor 64 hexadecimal digits") from reason
    with credentials_of(ctx).connect(target) as client:
        (block,) = client.get([chain_hash])
    if block.data is None:
        typer.echo(f"{target} does not have it: {block.miss}", err=True)
        raise typer.Exit(1)
    return block.data


def _as_dict(payload: Payload) -> dict[str, object]:
    header = payload.header
    values = 2 * header.layers * header.heads * header.head_dim * header.tokens
    return {
        "sound": True,
        "codec": header.codec.name.lower(),
        "form": header.form.name.lower(),
        "kv_dtype": header.kv_dtype.name.lower(),
        "tokens": header.tokens,
        "sinks": header.sinks,
        "first_token": header.first_token,
        "compute_ms": header.compute_ms,
        "layers": header.layers,
        "first_head": header.first_head,
        "heads": header.heads,
        "head_dim": header.head_dim,
        "root_hash": header.root_hash.hex(),
        "chain_hash": header.chain_hash.hex(),
        "codec_digest": header.codec_digest.hex(),
        "profile_digest": header.profile_digest.hex(),
        "payload_bytes": len(payload.data),
        "head_bytes": header.head_length,
        "preamble_bytes": header.preamble_bytes,
        "bits_per_value": 8 * len(payload.data) / values,
        "section_bytes": payload.sections[:, 1].reshape(header.layers, header.heads).tolist(),
    }


def _print(payload: Payload) -> None:
    shown = _as_dict(payload)
    sections = payload.sections[:, 1].reshape(payload.header.layers, payload.header.heads)
    print_table(("field", "value"), [(k, v) for k, v in shown.items() if k != "section_bytes"])
    typer.echo()
    print_table(
        ("layer", "bytes", "smallest head", "largest head"),
        [
            (layer, size(int(row.sum())), int(row.min()), int(row.max()))
            for layer, row in enumerate(sections)
        ],
    )
