"""Voices: speaker vectors and their strings, the library of named ones, and recordings to clone.

Must not know text, the engine, Triton or how a server is run.
"""
