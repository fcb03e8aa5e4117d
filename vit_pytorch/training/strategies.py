"""Ways to spread a training over processes, on GPUs and, through gloo, on CPUs."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

StrategyName = Literal["auto", "ddp", "fsdp"]


class FullyShardedStrategy(ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP2) whose checkpoints are those of a single process.

    Every module list of the model has each of its entries sharded by itself, so that a transformer gathers
    one block at a time. Weights and the optimizer's state are gathered in full to be saved, and cut again
    when they are loaded.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timeout,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer's state goes through the checkpoint's ordinary path."""
        return True

    def setup_environment(self) -> None:
        """Start the processes; all of them share the data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Shard the model, then make its optimizer over the shards."""
        assert self.model is not None
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        if trainer.state.fn == "fit":
            shard(self.model, self.device_mesh["data_parallel"])
        self.barrier()
        if trainer.state.fn == "fit":
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The full weights, on the CPU of the first process."""
        assert self.lightning_module is not None
        return self._gather(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The full state of an optimizer, on the CPU of the first process."""
        return self._gather(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def _gather(self, state: dict[str, Any]) -> dict[str, Any]:
        def full(tensor: torch.Tensor) -> torch.Tensor:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            return whole.cpu() if self.is_global_zero else torch.empty(0)

        return tree_map_only(torch.Tensor, full, state)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Let the first process write."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the full checkpoint in every process."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Cut the full weights into shards."""
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, checkpoint["state_dict"], options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Cut the full state of the optimizers into shards."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, moments in state["state"].items():
                parameter = parameters[index]
                for name, value in moments.items():
                    if (
                        isinstance(value, torch.Tensor)
                        and value.shape == parameter.shape
                        and isinstance(parameter, DTensor)
                    ):
                        moments[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            optimizer.load_state_dict(state)


def shard(model: nn.Module, mesh: Any) -> None:
    """Apply FSDP2 to each entry of each module list, then to the whole."""
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for entry in module:
                fully_shard(entry, mesh=mesh)
    fully_shard(model, mesh=mesh)


def make_strategy(
    name: StrategyName, *, devices: int = 1, timeout: timedelta = timedelta(minutes=10)
) -> Strategy | str:
    """Lightning's strategy for a name.

    Args:
        name: ``ddp`` copies the model to every process, ``fsdp`` shards it; ``auto`` is one process for one
            device, and ``ddp`` for several.
        devices: Number of processes on this machine.
        timeout: How long a process waits for the others before it gives up with an error.

    Returns:
        What ``Trainer(strategy=...)`` takes.
    """
    if name == "auto" and devices == 1:
        return "auto"
    if name in ("auto", "ddp"):
        return DDPStrategy(timeout=timeout)
    if name == "fsdp":
        return FullyShardedStrategy(timeout)
    raise ValueError(f"strategy must be 'auto', 'ddp' or 'fsdp', got {name!r}")
