"""`packkv worker`: an OpenAI-compatible server on a model with a shared, packed cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from packkv.cli.connection import DEFAULT_TARGET, credentials_of
from packkv.cli.serving import (
    MIB,
    Insecure,
    MaxBodyMib,
    TlsCert,
    TlsKey,
    check_installed,
    log_lines,
)
from packkv.cold import as_cold
from packkv.demo.options import ModelOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker")(worker)


def worker(
    ctx: typer.Context,
    model: ModelOption = None,
    model_name: Annotated[
        str | None, typer.Option(help="what requests call it  [default: the folder's name]")
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            envvar="PACKKV_TARGET",
            help="the store, HOST:PORT; several nodes of one by commas, the nearest first",
        ),
    ] = DEFAULT_TARGET,
    no_store: Annotated[bool, typer.Option("--no-store", help="share with nobody")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda:N")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16; auto: float32 on a CPU")
    ] = "auto",
    codec: Annotated[
        str,
        typer.Option(help="hybrid, packkv or raw, with parameters or without; none: no PackKV"),
    ] = "hybrid",
    cold: Annotated[
        str,
        typer.Option(
            help="publish entropy-coded blocks: always, never, or auto, where links are slow"
        ),
    ] = "auto",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of the API; port 0 takes a free one")
    ] = "127.0.0.1:8000",
    max_context: Annotated[
        int | None, typer.Option(help="tokens of prompt and answer  [default: the model's]")
    ] = None,
    max_running: Annotated[int, typer.Option(help="answers at one time, in one batch")] = 8,
    max_waiting: Annotated[int, typer.Option(help="requests that wait; more get 429")] = 64,
    max_body_mib: MaxBodyMib = 4,
    cache_mib: Annotated[int, typer.Option(help="memory for packed blocks")] = 1024,
    load_seconds: Annotated[float, typer.Option(help="longest fetch from the store")] = 2.0,
    request_seconds: Annotated[float, typer.Option(help="until an answer is complete")] = 600.0,
    grace_seconds: Annotated[
        float, typer.Option(help="at the end, for running answers and unpublished blocks")
    ] = 30.0,
    api_key_file: Annotated[
        Path | None, typer.Option(help="keys that may ask, one a line; # begins a comment")
    ] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
) -> None:
    """Serve a model by the OpenAI API; prefixes come from a store, and go there.

    A prefix that any worker of the same model has computed is fetched, not computed again; what
    was computed here is published in the background. `usage.prompt_tokens_details.cached_tokens`
    of an answer says how much of its prompt that was. Without a store, or with one that is down or
    slow, the worker computes everything. Options of the store's credentials stand before the
    command's name, its own after it.

    \b
        packkv serve &
        packkv worker --listen 127.0.0.1:8000 &
        curl -s localhost:8000/v1/models
        packkv --token "$TOKEN" --tls worker --store store-1:7437 --device cuda:0 \\
            --model /models/llama --listen 0.0.0.0:8000 --api-key-file keys \\
            --tls-cert cert.pem --tls-key key.pem
    """
    check_installed("worker", "fastapi", "uvicorn", "torch")
    from packkv.worker.config import WorkerConfig

    config = WorkerConfig(
        model=model,
        served_name=model_name,
        device=device,
        dtype=dtype,
        codec=codec,
        store=None if no_store or codec == "none" else store,
        client=credentials_of(ctx).client_config(),
        cache_bytes=cache_mib * MIB,
        deadline_s=load_seconds,
        cold=as_cold(cold),
        listen=listen,
        max_context=max_context,
        max_running=max_running,
        max_waiting=max_waiting,
        max_body_bytes=max_body_mib * MIB,
        request_s=request_seconds,
        grace_s=grace_seconds,
        api_keys_file=api_key_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        insecure=insecure,
    )
    _set_up_process()
    # after the settings are known to be right: it loads torch
    from packkv.worker.service import serve

    serve(config)


def _set_up_process() -> None:
    """Must come before torch and transformers are imported."""
    # threads that spin while they wait make a worker several times slower beside other work
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    log_lines()
