"""Vision Transformers for PyTorch that people can trust."""
