"""`packkv quota`: what tenants may have of a store, and have."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from packkv.cli.connection import DEFAULT_TARGET, AsJson, Target, credentials_of
from packkv.cli.output import print_json, print_table, size

if TYPE_CHECKING:
    from packkv.client import RateQuota, TenantQuota

COLUMNS = ("tenant", "RAM", "of", "disk", "sure of", "put", "get", "waited")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(quota)


def quota(ctx: typer.Context, target: Target = DEFAULT_TARGET, as_json: AsJson = False) -> None:
    """Show what tenants may have of a store, and have: an admin's token shows all of them.

    The last column is how long their calls have waited because of their rates.

    \b
        packkv quota
        packkv quota --json | jq '.[] | {tenant, put, get}'
    """
    with credentials_of(ctx).connect(target) as client:
        found = client.quotas()
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        print_table(COLUMNS, map(_row, found))


def _row(found: TenantQuota) -> tuple[str, ...]:
    tiers = {one.tier: (size(one.used_bytes), size(one.sure_bytes)) for one in found.tiers}
    return (
        found.tenant or "(everybody)",
        *tiers.get("ram", ("-", "-")),
        *tiers.get("disk", ("-", "-")),
        _rate(found.put),
        _rate(found.get),
        f"{found.put.waited_s + found.get.waited_s:.1f} s",
    )


def _rate(rate: RateQuota) -> str:
    return f"{size(rate.bytes_per_s)}/s" if rate.bytes_per_s else "any"
