"""The GPT's step in C, for CPUs: one call computes a whole step, on threads of its own and without PyTorch."""
