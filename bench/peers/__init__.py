"""`python -m bench peers`: decode steps of this project beside those of llama.cpp and OpenVINO.

All compute one model: random weights in ChatTTS's sizes, its four audio heads as one of 2,504 outputs. A step is the
same for all: four codes a sequence go in, their embeddings are added, the layers run over a cache of keys and values,
and the logits of every sequence come out. Nothing is drawn from them. Each system is a process of its own, one computes
at a time, and its logits are compared with float32 before any time is taken.
"""
