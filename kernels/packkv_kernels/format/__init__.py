"""The bytes of a block: written, checked, and described for the kernels. No torch in here."""

from packkv_kernels.format.payload import (
    Expectation,
    Form,
    KVDtype,
    Payload,
    PayloadHeader,
    open_payload,
    read_payload,
    verify_layers,
    write_payload,
)
from packkv_kernels.format.resident import ResidentSections, resident_sections, resident_words
from packkv_kernels.format.validate import describe_sections

__all__ = [
    "Expectation",
    "Form",
    "KVDtype",
    "Payload",
    "PayloadHeader",
    "ResidentSections",
    "describe_sections",
    "open_payload",
    "read_payload",
    "resident_sections",
    "resident_words",
    "verify_layers",
    "write_payload",
]
