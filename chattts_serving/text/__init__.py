"""Words in, token ids out: what is written is split, written out, tagged and tokenised, and prompts are made of it.

Knows voices as prompts name them. Must not know the engine, sound, Triton or how a server is run.
"""
