"""Any source as Lightning sees it: loaders that can resume within an epoch."""

from __future__ import annotations

from collections.abc import Iterator

from lightning import LightningDataModule

from newllm.data.batch import Batch
from newllm.data.source import TEST, VALIDATION, Source, Split


class TrainingLoader:
    """The training batches, epoch by epoch.

    Lightning announces each epoch through `sampler.set_epoch`, and keeps `state_dict` in its
    checkpoints. The loader draws no random numbers.

    Args:
        split: the batches.
        epoch_length: batches in an epoch of a split without an end.
    """

    def __init__(self, split: Split, epoch_length: int | None = None) -> None:
        self._split = split
        self._length = epoch_length if split.num_batches is None else split.num_batches
        self._epoch = 0
        self._num_used = 0
        self._num_to_skip = 0

    @property
    def sampler(self) -> TrainingLoader:
        """Itself, because Lightning looks for `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0; only the one that was interrupted resumes within."""
        if epoch != self._epoch:
            self._epoch, self._num_to_skip = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were used: all but the one at hand."""
        return {"epoch": self._epoch, "num_used": self._num_used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass skip the batches that were used when `state` was taken."""
        self._epoch, self._num_to_skip = state["epoch"], state["num_used"]

    def __len__(self) -> int:
        assert self._length is not None, "an endless split needs an epoch_length"
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        # Being a generator, this looks at the epoch only when the first batch is asked for;
        # Lightning makes the iterator before it announces the epoch.
        self._num_used, self._num_to_skip = self._num_to_skip, 0
        while self._num_used < len(self):
            yield self._batch(self._num_used)
            self._num_used += 1

    def _batch(self, number: int) -> Batch:
        if self._split.num_batches is None:
            return self._split.batch(0, self._epoch * len(self) + number)
        return self._split.batch(self._epoch, number)


class DataModule(LightningDataModule):
    """The loaders of a source.

    Args:
        source: set up already.
        epoch_length: batches in an epoch of a training split without an end: from one validation to
            the next.
        test: whether the test split is evaluated.
    """

    def __init__(self, source: Source, epoch_length: int | None = None, test: bool = True) -> None:
        super().__init__()
        self.source = source
        self.test = test
        self._training = TrainingLoader(source.train, epoch_length)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches in an epoch."""
        return len(self._training)

    @property
    def validation_names(self) -> list[str]:
        """The splits that are evaluated during training, `validation` first."""
        others = [name for name in self.source.evaluation if name not in (VALIDATION, TEST)]
        return [VALIDATION, *others]

    @property
    def test_names(self) -> list[str]:
        """The splits that are evaluated with the best weights."""
        excluded = {VALIDATION} if self.test else {VALIDATION, TEST}
        names = [name for name in self.source.evaluation if name not in excluded]
        return [name for name in names if len(self.source.evaluation[name])]

    def train_dataloader(self) -> TrainingLoader:
        """The training batches."""
        return self._training

    def val_dataloader(self) -> list[Split]:
        """The splits of `validation_names`."""
        return [self.source.evaluation[name] for name in self.validation_names]

    def test_dataloader(self) -> list[Split]:
        """The splits of `test_names`."""
        return [self.source.evaluation[name] for name in self.test_names]

    def state_dict(self) -> dict[str, int]:
        """The place in the training data.

        Lightning keeps that of the loader too, but restores it too late for a loader that was
        asked for early, as `Trainer.estimated_stepping_batches` does.
        """
        return self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume from there."""
        self._training.load_state_dict(state_dict)
