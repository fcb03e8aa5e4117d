"""Lightning's door to this package's checkpoints."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from vit_pytorch.training.checkpoints import Checkpoint, read_checkpoint, write_checkpoint


class FolderCheckpointIO(CheckpointIO):
    """Lightning's way to the checkpoints of this module; give it to ``Trainer(plugins=[...])``.

    Attributes:
        verified: A checkpoint that was found whole already and is not hashed again when it is loaded.
    """

    def __init__(self) -> None:
        self.verified: Checkpoint | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint with :func:`write_checkpoint`."""
        if storage_options is not None:
            raise ValueError(
                f"checkpoints go to local disks, which take no storage options, got {storage_options!r}"
            )
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint with :func:`read_checkpoint`; tensors arrive on the CPU, other objects never."""
        if self.verified is not None and os.fspath(self.verified) == os.fspath(path):
            return read_checkpoint(self.verified)
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint's folder; killed half-way, it leaves no folder with a final name."""
        path = Path(path)
        doomed = path.with_name(f".{path.name}.tmp")
        path.rename(doomed)
        shutil.rmtree(doomed)
