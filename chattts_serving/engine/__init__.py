"""Continuous batching for ChatTTS's GPT: refined text and audio codes in one batch, joining and leaving each step.

Sequence ──> Scheduler (who runs, where its cache lies) ──> ModelRunner (tensors, Sampler) ──> Engine.step()
"""
