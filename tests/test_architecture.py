"""Rules of docs/architecture.md that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("packkv_store", "protos", "kernels", "clients", "tests", "benchmarks")
SOURCES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "_pb2" not in path.name
)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# a kernel is one loop nest: cutting it up would cost its speed
KERNEL_DECORATORS = {"jit", "njit", "compiled", "vectorize", "guvectorize"}

BANNED_WORDS = {"manager", "helper", "helpers", "util", "utils", "handler", "chunk", "misc"}
# gRPC's own word for what a service registers
BORROWED = {"handler"}
# history and hardware belong to git and to the benchmark's rows
BANNED_ENDING = re.compile(r"(_v\d+|_new|_old|_fast|_final|_a100|_h100|_rtx\w*)$")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def test_the_folders_are_no_packages() -> None:
    # transformers imports a package called `kernels`; ours must never stand in its way
    assert [
        name for name in ("kernels", "clients", "protos") if (ROOT / name / "__init__.py").exists()
    ] == []


@pytest.mark.parametrize("folder", [Path("/"), ROOT], ids=["elsewhere", "repository"])
def test_only_our_four_packages_are_importable(folder: Path) -> None:
    found = run_python(
        "from importlib.util import find_spec\n"
        "names = 'kernels clients protos tests benchmarks'.split()\n"
        "names += 'packkv packkv_kernels packkv_protos packkv_store'.split()\n"
        "specs = [(name, find_spec(name)) for name in names]\n"
        # another distribution may well be called `kernels`: ours may not be what is found
        f"print([n for n, s in specs if s and {str(ROOT)!r} in str(s.submodule_search_locations)])",
        folder,
    )
    assert found == "['packkv', 'packkv_kernels', 'packkv_protos', 'packkv_store']"


@pytest.mark.parametrize(
    "module",
    [
        "packkv",
        "packkv.client",
        "packkv.cli",
        "packkv.router.service",
        # settings are checked, and the environment of torch set, before torch is there
        "packkv.worker.config",
        "packkv_store",
    ],
)
def test_light_imports_stay_light(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == "[]"


def test_help_is_light() -> None:
    assert (
        heavy_modules_after(
            "from contextlib import redirect_stdout, suppress; import io\n"
            "from packkv.cli import main; sys.argv = ['packkv', '--help']\n"
            "with suppress(SystemExit), redirect_stdout(io.StringIO()): main()"
        )
        == "[]"
    )


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_files_and_functions_can_be_read_at_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    long = {
        function.name: lines
        for function in functions(ast.parse(text))
        if (lines := code_lines(function)) > MAX_FUNCTION_LINES and not is_kernel(function)
    }
    assert long == {}


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_names_come_from_the_vocabulary(path: Path) -> None:
    defined = {path.stem, *defined_names(ast.parse(path.read_text(encoding="utf-8")))}
    assert {name for name in defined if is_banned(name)} <= BORROWED


def run_python(code: str, folder: Path = Path("/")) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def heavy_modules_after(code: str) -> str:
    return run_python(
        f"import sys\n{code}\n"
        "print(sorted({'torch', 'triton', 'numba', 'transformers'} & set(sys.modules)))"
    )


def code_lines(function: Function) -> int:
    """Lines of the body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def is_kernel(function: Function) -> bool:
    return any(
        word in KERNEL_DECORATORS
        for decorator in function.decorator_list
        for word in re.findall(r"\w+", ast.unparse(decorator))
    )


def defined_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | Function):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def is_banned(name: str) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return bool(
        BANNED_WORDS & {word.lower() for word in words} or BANNED_ENDING.search(name.lower())
    )
