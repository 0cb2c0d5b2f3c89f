"""The GPT's step in C, for CPUs: one call computes a whole step, on threads of its own and without PyTorch.

Knows the engine's plain part. Must not know PyTorch, text, requests or Triton's server.
"""
