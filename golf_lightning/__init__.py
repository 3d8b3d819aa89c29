"""Train, compress and score tiny language models on PyTorch Lightning."""

__version__ = "0.1.0"
