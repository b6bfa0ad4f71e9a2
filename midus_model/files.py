"""Files and folders written whole or not at all; defined in `kernels.files`, as errors are."""

from kernels.files import (
    is_draft,
    recover,
    replacing,
    sweep,
    unwritten,
    write_file,
    write_json,
    writing,
)

__all__ = [
    "is_draft",
    "recover",
    "replacing",
    "sweep",
    "unwritten",
    "write_file",
    "write_json",
    "writing",
]
