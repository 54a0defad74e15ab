"""SigLIP-style language-image training on PyTorch Lightning."""

__version__ = "0.1.0"
