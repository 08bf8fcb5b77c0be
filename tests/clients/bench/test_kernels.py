"""`packkv bench kernels`: its JSON, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("triton")

from packkv.cli.app import app

KEYS = {
    "kernel",
    "target",
    "compiled",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "alu_per_element",
    "issue_per_element",
}


def test_the_json_has_the_agreed_keys(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    arguments = ["--only", "combine_attention", "--target", "sm_90", "--json", str(path)]
    done = CliRunner().invoke(app, ["bench", "kernels", *arguments])
    assert done.exit_code == 0, done.output
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["kernel"] for row in rows] == [
        "combine_attention_states_hd128",
        "combine_attention_states_hd64",
    ]
    assert all(row.keys() == KEYS and row["compiled"] is True for row in rows)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--target", "abacus"], {}, "no target is called 'abacus'"),
        (["--only", "abacus", "--target", "sm_90"], {}, "no kernel's name contains 'abacus'"),
        ([], {"TRITON_INTERPRET": "1"}, "TRITON_INTERPRET=1 is set"),
    ],
)
def test_it_says_what_it_cannot_do(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    done = CliRunner().invoke(app, ["bench", "kernels", *arguments], env=environment)
    assert done.exit_code == 2
    assert message in done.output
