"""Every error a user can cause; they are defined in `kernels.errors`."""

from kernels.errors import (
    DamagedTokenizer,
    DataError,
    Diverged,
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
    "DamagedTokenizer",
    "DataError",
    "Diverged",
    "HeadError",
    "IncomparableTables",
    "MidusError",
    "ModelError",
    "NoOverlap",
    "RunError",
    "UnsupportedArchitecture",
    "UpscaleError",
]
