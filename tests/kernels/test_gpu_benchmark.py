"""benchmarks/gpu.py without a GPU: its arguments, all of its code but the clock, its honesty."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from packkv.bench.kernels.gpu.plan import parse
from packkv.bench.kernels.gpu.questions import QUESTIONS
from packkv.bench.kernels.gpu.report import svg
from packkv.bench.kernels.gpu.row import Row


def run(repository: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, repository / "benchmarks" / "gpu.py", *arguments],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contexts", "100"], "context 100 is not a multiple of 64"),
        (["--groups", "17"], "are not all in 1 … 16"),
        (["--batches", "0"], "are not all positive"),
    ],
)
def test_arguments_are_checked(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would measure")
def test_without_a_gpu_it_times_nothing(repository: Path, tmp_path: Path) -> None:
    status, output = run(repository, "--json", str(tmp_path / "gpu.json"))
    assert status == 2
    assert "no GPU here" in output
    assert not (tmp_path / "gpu.json").exists()


def test_a_dry_run_goes_through_every_check_and_every_row(repository: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"gpu.{name}" for name in ("json", "csv", "plot")}
    arguments = [text for name, file in files.items() for text in (f"--{name}", str(file))]
    status, output = run(
        repository, "--dry-run", *arguments, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES=""
    )
    assert status == 0, output
    assert "every kernel agrees with the reference" in output
    document = json.loads(files["json"].read_text())
    rows = document["rows"]
    assert document["skipped"] == []
    # nothing was timed, and nothing says otherwise
    assert {(row["us"], row["gbs"], row["timed"]) for row in rows} == {(None, None, False)}
    assert {row["kernel"] for row in rows} >= {
        "compress",
        "unpack",
        "sdpa_fp16_attention",
        "cublas_matvec_attention",
        "fp8_cast_sdpa_attention",
        "packed_decode_attention",
        "suffix_prefill_attention",
        "kvcomp_encode",
        "kvcomp_decode",
        "kvcomp_fused_attention",
        "cold_decode",
        "model_step_packed_cache",
    }
    assert {row["experiment"] for row in rows} == {"", *QUESTIONS}
    exact = [row["detail"] for row in rows if row["experiment"] == "subnormal_exactness"]
    assert exact == ["2^-24: exact", "2^-20: exact"]
    with files["csv"].open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert files["plot"].read_text().startswith("<svg")


def test_the_plot_has_a_bar_for_every_attention_that_was_timed() -> None:
    rows = [
        Row("sdpa_fp16_attention", context=4096, batch=1, group=4, us=90.0),
        Row("packed_decode_attention", context=4096, batch=1, group=4, us=30.0),
        Row("packed_decode_attention", experiment="splits", us=30.0),
        Row("compress", us=10.0),
        Row("kvcomp_fused_attention"),
    ]
    drawn = svg(rows, "a & b")
    assert drawn.count("<rect") == 1 + 2
    assert "a &amp; b" in drawn
    lengths = [float(width) for width in re.findall(r'width="([\d.]+)" height="12"', drawn)]
    assert lengths[0] > lengths[1] > 0


def test_cases_whose_keys_and_values_would_not_fit_are_left_out() -> None:
    plan = parse(["--contexts", "64", "128", "--batches", "1", "8"])
    assert plan.cases() == [(64, 1), (128, 1), (64, 8), (128, 8)]
    # K and V of 131,072 tokens for 32 sequences would not fit
    assert (131072, 32) not in parse([]).cases()
