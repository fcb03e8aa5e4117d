"""Training on Lightning: optimizers, modules, data, checkpoints, run folders."""
