"""`python -m packkv_store`: reads flags and files, runs one server until it is told to stop."""

import argparse
import asyncio
import ctypes
import gc
import json
import logging
import signal
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from packkv_store.app import App
from packkv_store.config import StoreConfig
from packkv_store.errors import ConfigError

# A thread that has moved its bytes waits so long for one that verifies others; Python's own 5 ms
# are a fifth of what a whole prefix takes.
SWITCH_SECONDS = 0.0005

EPILOG = """\
examples:
  packkv-store on this machine only, blocks in 8 GiB of RAM:
    python -m packkv_store --ram-bytes 8GiB
  blocks survive restarts, 200 GiB on disk:
    python -m packkv_store --ram-bytes 8GiB --data-dir /var/lib/packkv --disk-bytes 200GiB
  for other machines:
    python -m packkv_store --listen 0.0.0.0:7437 --tls-cert cert.pem --tls-key key.pem \\
        --tokens-file tokens.toml

A size is a number of bytes or 512MiB, 8GiB, 2TiB. A TOML file of --config holds the same names
with underscores (ram_bytes = "8GiB"); a flag wins over the file. docs/operations.md says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 2 when a setting is wrong."""
    try:
        config = read_config(sys.argv[1:] if arguments is None else arguments)
        _keep_freed_memory()
        sys.setswitchinterval(SWITCH_SECONDS)
        _set_up_logs(config)
        asyncio.run(_serve(config))
    except ConfigError as error:
        print(f"packkv-store: {error}", file=sys.stderr)
        return 2
    return 0


def read_config(arguments: Sequence[str]) -> StoreConfig:
    """Defaults, then the file of --config, then flags."""
    given = vars(_parser().parse_args(arguments))
    path: Path | None = given.pop("config")
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"config file {path}: {error}") from None
    return StoreConfig.from_values(
        values | {name: value for name, value in given.items() if value is not None}
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="packkv-store",
        description="Keeps compressed KV cache blocks in RAM and on disk and serves them by gRPC.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings")
    for setting in fields(StoreConfig):
        flag = "--" + setting.name.replace("_", "-")
        text = setting.metadata["help"]
        if isinstance(setting.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            shown = "" if setting.default is None else f" [{_readable(setting.default)}]"
            parser.add_argument(flag, metavar=setting.metadata["shown"], help=text + shown)
    return parser


def _readable(default: object) -> str:
    if isinstance(default, int) and default >= 1 << 20:
        return f"{default >> 20}MiB" if default < 1 << 30 else f"{default >> 30}GiB"
    return f"{default:g}" if isinstance(default, float) else str(default)


async def _serve(config: StoreConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = App(config)
    await app.start()
    # modules, and a million blocks found on disk: no collection of garbage needs to walk over them
    gc.collect()
    gc.freeze()
    print(f"packkv-store listening on {app.address}", flush=True)
    await stop.wait()
    logging.getLogger(__name__).info("stopping")
    await app.stop()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _set_up_logs(config: StoreConfig) -> None:
    lines = logging.StreamHandler()  # stderr: stdout has the one line that says the port
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    lines.setFormatter(_JsonLines() if config.log_json else plain)
    logging.basicConfig(level=config.log_level.upper(), handlers=[lines])


def _keep_freed_memory() -> None:
    """Tells glibc to reuse the memory of 1 MiB frames instead of mapping it afresh for each,
    which makes streams up to 2.6 times faster. The numbers are mallopt(3)'s."""
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 512 << 20)
        mallopt(top_pad, 64 << 20)


if __name__ == "__main__":
    sys.exit(main())
