"""Every error a user can cause; they are defined in `kernels.errors`."""

from kernels.errors import (
    DataError,
    HeadError,
    IncomparableTables,
    MidusError,
    ModelError,
    NoOverlap,
    RunError,
    UnsupportedArchitecture,
    UpscaleError,
)

__all__ = [
    "DataError",
    "HeadError",
    "IncomparableTables",
    "MidusError",
    "ModelError",
    "NoOverlap",
    "RunError",
    "UnsupportedArchitecture",
    "UpscaleError",
]
