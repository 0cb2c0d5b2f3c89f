"""Open requests: who is let in, how their sentences go through the engine, and which chunk of sound is next.

Knows the engine's plain part. Must not know what computes, how text becomes tokens, or Triton.
"""
