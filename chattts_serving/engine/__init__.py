"""Continuous batching for ChatTTS's GPT: refined text and audio codes in one batch, joining and leaving each step.

Plain counting: Scheduler (who runs, where its cache lies) -> Runner -> Engine.step(); `cpu` and `gpu` hold the runners.
Must not know what computes, nor text, voices, requests, sound or Triton's server.
"""
