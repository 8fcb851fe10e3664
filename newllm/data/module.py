"""The Lightning data module of a source, whose training loader resumes within an epoch."""

from __future__ import annotations

from collections.abc import Iterator

from lightning import LightningDataModule

from newllm.data.batch import Batch
from newllm.data.source import TEST, VALIDATION, Source, Split


class TrainingLoader:
    """The training batches, epoch by epoch.

    Lightning calls `sampler.set_epoch` at each epoch and keeps `state_dict` in its checkpoints.

    Args:
        split: the batches.
        epoch_length: batches in an epoch of an endless split.
        share: number of this process and of all; each takes its share of the rows of every batch.
    """

    def __init__(
        self, split: Split, epoch_length: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        self._split = split
        self._share = share
        self._length = epoch_length if split.num_batches is None else split.num_batches
        self._epoch = 0
        self._num_used = 0
        self._num_to_skip = 0

    @property
    def sampler(self) -> TrainingLoader:
        """Itself, because Lightning looks for `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0. Only the interrupted epoch skips batches."""
        if epoch != self._epoch:
            self._epoch, self._num_to_skip = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch and the number of its batches that were used, without the current one."""
        return {"epoch": self._epoch, "num_used": self._num_used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the batches used before `state` was taken in the next pass."""
        self._epoch, self._num_to_skip = state["epoch"], state["num_used"]

    def __len__(self) -> int:
        assert self._length is not None, "an endless split needs an epoch_length"
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        # Lightning makes the iterator before it sets the epoch, but takes no batch until then.
        self._num_used, self._num_to_skip = self._num_to_skip, 0
        is_endless = self._split.num_batches is None
        while self._num_used < len(self):
            if is_endless:
                batch = self._split.batch(0, self._epoch * len(self) + self._num_used)
            else:
                batch = self._split.batch(self._epoch, self._num_used)
            yield batch.share(*self._share)
            self._num_used += 1


class DataModule(LightningDataModule):
    """The loaders of a source.

    Args:
        source: a source that is set up.
        epoch_length: batches in an epoch of an endless training split.
        test: whether the test split is evaluated.
        share: as in `TrainingLoader`; every process evaluates all rows.
    """

    def __init__(
        self,
        source: Source,
        epoch_length: int | None = None,
        test: bool = True,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__()
        self.source = source
        self.test = test
        self._share = share
        self._training = TrainingLoader(source.train, epoch_length, share)

    def share_of(self, batch: Batch) -> Batch:
        """The rows of a training batch that this process takes."""
        return batch.share(*self._share)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches in an epoch."""
        return len(self._training)

    @property
    def validation_names(self) -> list[str]:
        """The splits that are evaluated during training, `validation` first."""
        others = [
            name
            for name, split in self.source.evaluation.items()
            if split.while_training and name not in (VALIDATION, TEST)
        ]
        return [VALIDATION, *others]

    @property
    def test_names(self) -> list[str]:
        """The splits that are evaluated with the best weights."""
        excluded = {VALIDATION} if self.test else {VALIDATION, TEST}
        names = [name for name in self.source.evaluation if name not in excluded]
        return [name for name in names if len(self.source.evaluation[name])]

    def train_dataloader(self) -> TrainingLoader:
        return self._training

    def val_dataloader(self) -> list[Split]:
        return [self.source.evaluation[name] for name in self.validation_names]

    def test_dataloader(self) -> list[Split]:
        return [self.source.evaluation[name] for name in self.test_names]

    def state_dict(self) -> dict[str, int]:
        """The place in the training data.

        Lightning restores the loader's own state too late if the loader was requested early, as
        `Trainer.estimated_stepping_batches` does.
        """
        return self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._training.load_state_dict(state_dict)
