"""Continuous batching for ChatTTS's GPT: refined text and audio codes in one batch, joining and leaving each step.

Sequence ──> Scheduler (who runs, where its cache lies) ──> Runner (computes, draws) ──> Engine.step()
                                                              ├ CpuRunner ── chattts_serving.cpu, in C
                                                              └ TorchRunner ── lanes, triton_ops (GPU), torch_ops
"""
