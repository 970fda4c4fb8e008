"""The models, each from arrays to arrays."""
