"""The bytes of a block: written, checked, and described for the kernels. No torch in here."""

from packkv_kernels.format.payload import (
    Expectation,
    KVDtype,
    Payload,
    PayloadHeader,
    read_payload,
    write_payload,
)
from packkv_kernels.format.resident import ResidentSections, resident_sections
from packkv_kernels.format.validate import describe_sections

__all__ = [
    "Expectation",
    "KVDtype",
    "Payload",
    "PayloadHeader",
    "ResidentSections",
    "describe_sections",
    "read_payload",
    "resident_sections",
    "write_payload",
]
