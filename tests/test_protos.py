"""The committed protobuf code says what the .proto files say."""

from __future__ import annotations

import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

ROOT = Path(__file__).parents[1]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
IDS = [path.stem for path in PROTOS]
# made by `make protos`: whoever changes a .proto has it
GENERATOR = ROOT / "build" / "protoc" / "bin" / "python"

FIELD = re.compile(r"(map<\w+, \w+>|repeated \w+|\w+) (\w+) = (\d+);")
VALUE = re.compile(r"([A-Z_]+) = (\d+);")
SCALARS = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}
METHOD = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")


@pytest.mark.parametrize("path", PROTOS, ids=IDS)
def test_generated_code_has_every_name_and_number_of_the_proto(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT / "protos").with_suffix("").parts) + "_pb2"
    file: FileDescriptor = import_module(module).DESCRIPTOR
    source = re.sub(r"//.*", "", path.read_text())
    assert messages_of(source) == {
        message.name: {spelled(field) for field in message.fields}
        for message in file.message_types_by_name.values()
    }
    assert bodies_of("enum", source, VALUE) == {
        enum.name: {(value.name, str(value.number)) for value in enum.values}
        for enum in file.enum_types_by_name.values()
    }
    assert bodies_of("service", source, METHOD) == {
        service.name: {
            (
                method.name,
                "stream " * method.client_streaming,
                method.input_type.name,
                "stream " * method.server_streaming,
                method.output_type.name,
            )
            for method in service.methods
        }
        for service in file.services_by_name.values()
    }


@pytest.mark.skipif(not GENERATOR.exists(), reason="no generator here: `make protos` makes it")
@pytest.mark.parametrize("path", PROTOS, ids=IDS)
def test_generator_writes_what_is_committed(path: Path, tmp_path: Path) -> None:
    command = [str(GENERATOR), "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", str(path)]
    command += [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run(command, check=True, timeout=300)
    written = sorted(tmp_path.rglob("*.py"))
    assert written
    for file in written:
        committed = ROOT / "protos" / file.relative_to(tmp_path)
        assert committed.read_bytes() == file.read_bytes()


def bodies_of(kind: str, source: str, line: re.Pattern[str]) -> dict[str, set[tuple[str, ...]]]:
    """What `line` finds in each message, enum or service, by its name."""
    found = re.findall(rf"^{kind} (\w+) \{{([^}}]*)\}}", source, re.MULTILINE)
    return {name: {match.groups("") for match in line.finditer(body)} for name, body in found}


def messages_of(source: str) -> dict[str, set[tuple[str, ...]]]:
    # a oneof changes no name and no number: its fields belong to the message
    flat = re.sub(r"oneof \w+ \{(.*?)\}", r"\1", source, flags=re.DOTALL)
    return bodies_of("message", flat, FIELD)


def spelled(field: FieldDescriptor) -> tuple[str, str, str]:
    """A field as its line in the .proto: label and type, name, number."""
    kind = type_of(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (type_of(part) for part in field.message_type.fields)
        kind = f"map<{key}, {value}>"
    elif field.is_repeated:
        kind = f"repeated {kind}"
    return kind, field.name, str(field.number)


def type_of(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    if named is not None:
        return str(named.name)
    return SCALARS[FieldDescriptorProto.Type.ValueType(field.type)]
