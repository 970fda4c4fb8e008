"""Content-aware collaborative music recommendation with pre-trained neural networks, reproduced."""

__version__ = "0.1.0"
