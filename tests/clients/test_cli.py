"""The `packkv` command, run as users run it; what it prints for programs is parsed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from packkv.cli import app
from packkv.client import Client

if TYPE_CHECKING:
    from tests.clients.conftest import StoreProcess, Worker

TOKENS = list(range(64 * 3))
NOWHERE = "127.0.0.1:1"
COMMANDS = [
    "serve",
    "ping",
    "stats",
    "quota",
    "clear",
    "drain",
    "lifetime",
    "match",
    "inspect",
    "verify",
    "doctor",
    "watch",
]


def packkv(*arguments: object, answer: str | None = None) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner(env={"PACKKV_TARGET": "", "COLUMNS": "200"}).invoke(app, words, input=answer)


def parsed(result: Result, status: int = 0) -> Any:
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


@pytest.fixture
def files(tmp_path: Path, worker: Worker) -> Path:
    """namespace.json, other.json, tokens.json, tokens.txt, hashes.txt and block.packkv."""
    other = worker.having(weights_digest="99" * 32, tenant_salt="very-secret").namespace
    (tmp_path / "namespace.json").write_bytes(worker.namespace.canonical_json())
    (tmp_path / "other.json").write_bytes(other.canonical_json())
    (tmp_path / "tokens.json").write_text(json.dumps(TOKENS))
    (tmp_path / "tokens.txt").write_text(" ".join(map(str, TOKENS)))
    (tmp_path / "hashes.txt").write_text("\n".join(h.hex() for h in worker.hashes(TOKENS)))
    (tmp_path / "block.packkv").write_bytes(worker.payload(TOKENS, 1))
    return tmp_path


@pytest.fixture
def stored(client: Client, worker: Worker) -> str:
    """A target that has the first two of three blocks."""
    blocks = [payload for _, payload in worker.blocks(TOKENS)]
    client.put(list(zip(worker.hashes(TOKENS)[:2], blocks[:2], strict=True)))
    return client.target


def test_help_is_quick_and_never_imports_torch() -> None:
    code = (
        "import sys\n"
        "from packkv.cli import main\n"
        "sys.argv = ['packkv', '--help']\n"
        "try: main()\n"
        "finally: print({'torch', 'numba', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "set()"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "serve"])
def test_help_teaches_with_an_example(command: str) -> None:
    result = packkv(command, "--help")
    assert result.exit_code == 0
    assert f"packkv {command}" in result.stdout
    assert "--json" in result.stdout


def test_a_wrong_command_line_is_status_2(files: Path) -> None:
    assert packkv("nonsense").exit_code == 2
    assert packkv("ping", "--nonsense").exit_code == 2
    assert packkv("match", files / "tokens.json").exit_code == 2
    assert packkv("match", files / "nowhere", "--root", "00" * 32).exit_code == 2
    assert packkv("match", files / "tokens.json", "--root", "zz").exit_code == 2
    assert packkv("match", files / "namespace.json", "--root", "00" * 32).exit_code == 2
    assert packkv("doctor", files / "tokens.json", files / "other.json").exit_code == 2
    assert packkv("doctor", files / "namespace.json").exit_code == 2
    assert packkv("doctor", *[files / "other.json"] * 3).exit_code == 2
    assert packkv("inspect", "no-such-file").exit_code == 2
    refused = packkv("--token", "secret", "ping", "--target", "10.0.0.1:1")
    assert refused.exit_code == 2
    assert "plaintext" in refused.stderr
    assert "secret" not in refused.output


@pytest.mark.parametrize("command", [["ping"], ["stats"], ["clear", "--yes"]], ids=" ".join)
def test_no_store_is_one_line_and_status_1(command: list[str]) -> None:
    result = packkv(*command, "--target", NOWHERE)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("packkv: ")
    assert NOWHERE in result.stderr


def test_ping(store: StoreProcess) -> None:
    assert "serves" in packkv("ping", "--target", store.target).stdout
    assert parsed(packkv("ping", "-t", store.target, "--json"))["target"] == store.target


def test_stats(stored: str) -> None:
    stats = parsed(packkv("stats", "--target", stored, "--json"))
    assert stats["blocks"] == 2
    assert {tier["tier"] for tier in stats["tiers"]} == {"ram", "disk"}
    text = packkv("stats", "--target", stored).stdout
    assert "2 blocks" in text
    assert "ram" in text
    assert {tier["cold_blocks"] for tier in stats["tiers"]} == {0}
    assert "of it cold" in text


def test_quota(stored: str) -> None:
    [everybody] = parsed(packkv("quota", "--target", stored, "--json"))
    assert everybody["tenant"] == ""
    assert everybody["put"] == everybody["get"] == dict.fromkeys(everybody["put"], 0)
    tiers = {tier["tier"]: tier for tier in everybody["tiers"]}
    assert tiers["ram"]["used_bytes"] > 0
    assert tiers["ram"]["sure_bytes"] == 64 << 20
    shown = packkv("quota", "--target", stored).stdout
    assert shown.splitlines()[1].startswith("(everybody)")
    assert "64.0 MiB" in shown


def test_a_watch_goes_on_until_ctrl_c(stored: str) -> None:
    command = [sys.executable, "-c", "from packkv.cli import main; main()", "stats", "--watch"]
    command += ["--every", "0.05", "--json", "--target", stored]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            looks = [json.loads(watch.stdout.readline()) for _ in range(3)]
            watch.send_signal(signal.SIGINT)
            watch.communicate(timeout=60)
        finally:
            watch.kill()
    assert watch.returncode == 0
    assert [look["blocks"] for look in looks] == [2, 2, 2]
    assert looks[0]["uptime_s"] < looks[1]["uptime_s"] < looks[2]["uptime_s"]


def test_a_watch_outlives_the_store(own_store: StoreProcess) -> None:
    command = [sys.executable, "-c", "from packkv.cli import main; main()", "--timeout", "1"]
    command += ["stats", "--watch", "--every", "0.05", "--json", "--target", own_store.target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            assert json.loads(watch.stdout.readline())["blocks"] == 0
            own_store.kill()
            while "error" not in (look := json.loads(watch.stdout.readline())):
                pass
            assert own_store.target in look["error"]
            own_store.start(own_store.target)
            while "error" in json.loads(watch.stdout.readline()):
                pass
            watch.send_signal(signal.SIGINT)
            watch.communicate(timeout=60)
        finally:
            watch.kill()
    assert watch.returncode == 0


@pytest.mark.parametrize("name", ["tokens.json", "tokens.txt", "hashes.txt"])
def test_match(stored: str, files: Path, worker: Worker, name: str) -> None:
    how = ["--hashes"] if name == "hashes.txt" else ["--namespace", files / "namespace.json"]
    arguments = ["match", files / name, *how, "--target", stored]
    found = parsed(packkv(*arguments, "--json"))
    assert (found["asked_blocks"], found["matched_blocks"], found["matched_tokens"]) == (3, 2, 128)
    assert found["miss"] == "absent"
    assert [block["chain_hash"] for block in found["blocks"]] == [
        chain_hash.hex() for chain_hash in worker.hashes(TOKENS)[:2]
    ]
    assert "2 of 3 blocks" in packkv(*arguments).stdout


def test_match_of_nothing_is_status_1(stored: str, files: Path) -> None:
    arguments = ["match", files / "tokens.json", "--root", "00" * 32, "-t", stored]
    assert parsed(packkv(*arguments, "--json"), status=1)["matched_blocks"] == 0


def test_inspect_of_a_file_and_of_a_stored_block_agree(
    stored: str, files: Path, worker: Worker
) -> None:
    of_file = parsed(packkv("inspect", files / "block.packkv", "--json"))
    name = worker.hashes(TOKENS)[1].hex()
    assert parsed(packkv("inspect", name, "--target", stored, "--json")) == of_file
    assert of_file["sound"] is True
    assert of_file["codec"] == "raw"
    assert of_file["first_token"] == 64
    assert of_file["chain_hash"] == name
    assert of_file["payload_bytes"] == (files / "block.packkv").stat().st_size
    sections = sum(sum(layer) for layer in of_file["section_bytes"])
    assert of_file["head_bytes"] + sections == of_file["payload_bytes"]
    text = packkv("inspect", files / "block.packkv").stdout
    assert name in text
    assert "largest head" in text


def test_inspect_says_what_is_wrong(stored: str, files: Path) -> None:
    damaged = bytearray((files / "block.packkv").read_bytes())
    damaged[-1] ^= 1
    (files / "damaged").write_bytes(damaged)
    assert parsed(packkv("inspect", files / "damaged", "--json"), 1)["reason"] == "checksum"
    assert packkv("inspect", files / "damaged").exit_code == 1
    absent = packkv("inspect", "77" * 32, "--target", stored)
    assert absent.exit_code == 1
    assert "absent" in absent.stderr


def test_clear_asks_first_and_keeps_other_namespaces(stored: str, files: Path) -> None:
    assert packkv("clear", "--target", stored, answer="n\n").exit_code == 1
    other = ["clear", "--namespace", files / "other.json", "--yes", "-t", stored, "--json"]
    assert parsed(packkv(*other))["blocks"] == 0
    ours = ["clear", "--namespace", files / "namespace.json", "--yes", "-t", stored, "--json"]
    assert parsed(packkv(*ours))["blocks"] == 2
    assert packkv("clear", "--root", "00" * 32, "--target", stored, answer="y\n").exit_code == 0


def test_lifetimes_are_set_shown_and_taken_back(stored: str, files: Path, worker: Worker) -> None:
    here = ["--target", stored, "--json"]
    ours = ["--namespace", files / "namespace.json"]
    root_hash = worker.namespace.root_hash().hex()
    assert parsed(packkv("lifetime", *here)) == {"default_s": None, "lifetimes": []}
    for value, seconds in (("90", 90.0), ("1.5h", 5400.0), ("never", None)):
        found = parsed(packkv("lifetime", value, *ours, *here))
        assert found["lifetimes"] == [{"root_hash": root_hash, "seconds": seconds}]
    text = packkv("lifetime", "7d", "--root", root_hash, "--target", stored).stdout
    assert root_hash in text
    assert "604800 s" in text
    assert parsed(packkv("lifetime", "default", *ours, *here))["lifetimes"] == []


@pytest.mark.parametrize("value", ["0", "-1", "7 days", "nan", "1e9", ""])
def test_what_is_no_lifetime_is_status_2(value: str) -> None:
    assert packkv("lifetime", "--root", "00" * 32, "-t", NOWHERE, "--", value).exit_code == 2


def test_a_lifetime_is_that_of_a_namespace() -> None:
    assert packkv("lifetime", "7d", "--target", NOWHERE).exit_code == 2
    assert packkv("lifetime", "--root", "00" * 32, "--target", NOWHERE).exit_code == 2


def test_doctor_names_the_fields_that_differ_and_keeps_the_salt(files: Path) -> None:
    arguments = ["doctor", files / "namespace.json", files / "other.json"]
    found = parsed(packkv(*arguments, "--json"), status=1)
    assert [difference["field"] for difference in found["differences"]] == [
        "weights_digest",
        "tenant_salt",
    ]
    text = packkv(*arguments).output
    assert "weights_digest" in text
    assert "very-secret" not in text + json.dumps(found)


def test_doctor_of_equals_is_content(files: Path) -> None:
    arguments = ["doctor", files / "namespace.json", files / "namespace.json"]
    assert parsed(packkv(*arguments, "--json"))["equal"] is True
    assert packkv(*arguments).exit_code == 0


def test_doctor_asks_the_store(stored: str, files: Path) -> None:
    arguments = ["doctor", files / "namespace.json", "--tokens", files / "tokens.json"]
    assert packkv(*arguments).exit_code == 2
    found = parsed(packkv(*arguments, "--target", stored, "--json"), status=1)
    assert found["store"] == [
        {
            "namespace": str(files / "namespace.json"),
            "asked_blocks": 3,
            "matched_blocks": 2,
            "miss": "absent",
        }
    ]
    assert "evicted" in packkv(*arguments, "--target", stored).stdout


def test_serve_passes_everything_on_to_the_server(tmp_path: Path) -> None:
    serve = [sys.executable, "-c", "from packkv.cli import main; main()", "serve"]
    shown = subprocess.run([*serve, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert "--ram-bytes" in shown.stdout
    arguments = ["--listen", "127.0.0.1:0", "--ram-bytes", str(16 << 20)]
    with subprocess.Popen([*serve, *arguments], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        target = ""
        for line in server.stdout:
            if "listening on" in line:
                target = line.split("listening on")[1].split()[0]
                break
        assert packkv("ping", "--target", target).exit_code == 0
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait(60) == 0
