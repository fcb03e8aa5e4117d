"""Fabric, as this package's trainings use it: devices, processes, precision, and FSDP2, whole checkpoints."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vit_pytorch.training.config import StrategyName


def make_fabric(
    *,
    devices: int = 1,
    num_nodes: int = 1,
    strategy: StrategyName = "auto",
    accelerator: str = "auto",
    precision: Any = None,
    timeout: timedelta = timedelta(minutes=10),
    **options: Any,
) -> Fabric:
    """Build the engine of a training; its processes start with `fabric.launch()`.

    Args:
        devices: number of processes on each machine
        num_nodes: number of machines
        strategy: `ddp` copies the model to every process, `fsdp` shards it; `auto` is one process for one
            device, and `ddp` for several
        accelerator: as in `Fabric`
        precision: as in `Fabric`; default single
        timeout: how long a process waits for the others before it gives up with an error
        options: other arguments of `Fabric`

    Raises:
        ValueError: if torchrun or SLURM started another number of processes, or there is no such strategy or
            accelerator
    """
    _check_launcher(devices, num_nodes)
    made = _make_strategy(strategy, devices * num_nodes, timeout)
    try:
        return Fabric(
            devices=devices,
            num_nodes=num_nodes,
            strategy=made,
            accelerator=accelerator,
            precision=precision,
            **options,
        )
    except (RuntimeError, MisconfigurationException) as error:
        raise ValueError(
            f"accelerator {accelerator!r} with {devices} devices and precision {precision!r} cannot be used "
            f"here: {error}"
        ) from error


def _check_launcher(devices: int, num_nodes: int) -> None:
    """Check that what started this process says all that the others need, and agrees with the settings.

    Raises:
        ValueError: if it does not
    """
    if TorchElasticEnvironment.detect():
        started = int(os.environ["WORLD_SIZE"])
    elif SLURMEnvironment.detect():
        started, needed = int(os.environ["SLURM_NTASKS"]), ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"]
        if missing := _unset(*needed, *(["SLURM_NTASKS_PER_NODE"] if started > 1 else [])):
            raise ValueError(
                "processes under SLURM are started by srun with --nodes and --ntasks-per-node; not set: "
                f"{', '.join(missing)}"
            )
    else:
        if num_nodes > 1 and (missing := _unset("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")):
            raise ValueError(
                f"num_nodes {num_nodes} needs torchrun or srun on each machine, or in the environment "
                f"MASTER_ADDR, MASTER_PORT and NODE_RANK; not set: {', '.join(missing)}"
            )
        return
    if started != devices * num_nodes:
        raise ValueError(
            f"devices x num_nodes must be the number of processes that torchrun or SLURM started, {started}; "
            f"got {devices} x {num_nodes}"
        )


def _unset(*names: str) -> list[str]:
    return [name for name in names if name not in os.environ]


def starts_processes(devices: int) -> bool:
    """Return whether Fabric would start further processes, as copies of the program that is running."""
    found = (TorchElasticEnvironment.detect(), SLURMEnvironment.detect())
    return devices > 1 and not any(found) and "LOCAL_RANK" not in os.environ


def wait_for_others() -> None:
    """Wait for the other processes of a training, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def is_first_process() -> bool:
    """Return whether this is the first of the training's processes, also before Fabric starts them."""
    if TorchElasticEnvironment.detect():
        return os.environ["RANK"] == "0"
    if SLURMEnvironment.detect():
        return os.environ["SLURM_PROCID"] == "0"
    return all(int(os.environ.get(name, "0")) == 0 for name in ("NODE_RANK", "LOCAL_RANK"))


def _make_strategy(name: StrategyName, processes: int, timeout: timedelta) -> Strategy | str:
    if name == "auto" and processes == 1:
        return "auto"
    if name in ("auto", "ddp"):
        return DDPStrategy(timeout=timeout)
    if name == "fsdp":
        return ModelParallelStrategy(
            shard,
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timeout,
        )
    raise ValueError(f"strategy must be 'auto', 'ddp' or 'fsdp', got {name!r}")


def shard(model: nn.Module, mesh: Any) -> nn.Module:
    """Apply FSDP2 to entries of module lists, so that one block is gathered at a time, and to the whole."""
    split = partial(fully_shard, mesh=mesh["data_parallel"])
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for entry in module:
                split(entry)
    split(model)
    return model


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_as(local: Tensor, like: Tensor) -> Tensor:
    """Return the tensor of which every process holds a part, cut as another one is."""
    if not isinstance(like, DTensor):
        return local
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(local, mesh, placements, shape=like.shape, stride=like.stride())


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut a whole tensor as another one of its shape is; leave one that is sharded."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def gathered(state: Any) -> Any:
    """Gather the sharded tensors of a state dict in full; all processes take part."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    return state.full_tensor().cpu() if isinstance(state, DTensor) else state


def load_weights(module: nn.Module, state: dict[str, Any]) -> None:
    """Load weights into a module, which may be sharded: whole ones, or cut as the module's are."""
    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        whole = not any(isinstance(value, DTensor) for value in state.values())
        set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=whole, strict=True))
    else:
        module.load_state_dict(state)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer, whole or cut as its parameters are; its own settings stay.

    A run that is resumed with another weight decay gets it, and on another machine the kernels of that one.
    """
    groups = [
        {**group, "params": saved["params"]}
        for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {
            name: shard_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def process_states(fabric: Fabric, mine: Any) -> list[Any]:
    """Collect a value of every process, in order of their ranks."""
    if fabric.world_size == 1:
        return [mine]
    states: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(states, mine)
    return states


def sum_over_processes(fabric: Fabric, value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, the same in each of them."""
    if fabric.world_size == 1:
        return value
    # not by Fabric, which changes its argument and waits for a barrier first
    total = value.to(fabric.device, copy=True)
    torch.distributed.all_reduce(total)
    return total
