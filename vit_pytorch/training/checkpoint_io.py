"""Lightning's door to this package's checkpoints."""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from vit_pytorch.training.checkpoints import read_checkpoint, write_checkpoint


class FolderCheckpointIO(CheckpointIO):
    """Lightning's way to the checkpoints of this module; give it to ``Trainer(plugins=[...])``."""

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
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint's folder; killed half-way, it leaves no folder with a final name."""
        path = Path(path)
        doomed = path.with_name(f".{path.name}.tmp")
        path.rename(doomed)
        shutil.rmtree(doomed)
