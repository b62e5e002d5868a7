"""Optimisers beside PyTorch's own."""
