"""The GPT's step on a GPU, with PyTorch and Triton's kernels, and the plain PyTorch reference for both.

Knows the engine's plain part. Must not know the C library, text, requests or Triton's server.
"""
