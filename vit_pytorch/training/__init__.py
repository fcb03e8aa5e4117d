"""Training: data, optimisation, checkpoints and the Lightning modules that join them."""
