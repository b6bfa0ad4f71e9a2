"""The rows of a training: a function of documents, context, batch size, steps and seed alone."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch.utils.data import Dataset

from analysis.documents import Documents
from kernels.errors import DataError

IGNORED = -100  # label of a token whose loss does not count


class PackedRows(Dataset):
    """Documents end to end, cut into `rows` rows of `context` tokens.

    The order of documents is drawn once; every epoch has its own offset and its own order of
    rows. Tokens of a task's prompt carry no loss.
    """

    def __init__(self, documents: Documents, rows: int, seed: int = 0) -> None:
        self.context, self.rows, self.seed = documents.context, rows, seed
        order = np.random.default_rng((seed, 0)).permutation(len(documents))
        items = [documents[int(i)] for i in order]
        self.ids = torch.cat([item.ids for item in items])
        # A text's first token follows the text before: predicting it is learning where texts begin.
        counted = [
            torch.arange(len(item.ids)) >= (item.scored_from if item.scored_from > 1 else 0)
            for item in items
        ]
        self.labels = torch.where(torch.cat(counted), self.ids, IGNORED)
        self.per_epoch = len(self.ids) // self.context - 1
        if self.per_epoch < 1:
            raise DataError(
                f"{documents.name} has {len(self.ids):,} tokens, too few to train on; give at "
                f"least {2 * self.context:,} (two rows of the context, {self.context})"
            )
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, position = divmod(index, self.per_epoch)
        if epoch not in self._epochs:
            rng = np.random.default_rng((self.seed, 1, epoch))
            drawn = int(rng.integers(0, self.context)), rng.permutation(self.per_epoch)
            self._epochs = {epoch: drawn}
        offset, order = self._epochs[epoch]
        start = offset + int(order[position]) * self.context
        span = slice(start, start + self.context)
        labels = self.labels[span].clone()
        labels[0] = IGNORED  # nothing in the row predicts it
        return {"input_ids": self.ids[span].clone(), "labels": labels}

    def sha256(self) -> str:
        """Hash of what the rows are cut from."""
        digest = hashlib.sha256(self.ids.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()
