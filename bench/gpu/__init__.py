"""`python -m bench gpu`: whether the engine is right on this GPU, and where the time goes, in one command.

It needs torch, triton, numpy and safetensors, and nothing else of this project's environment. What is done is cut into
phases, most important first, each of which is saved at once; a budget of seconds bounds them all. They run in a process
of their own, which is started anew for the rest where a phase takes it down: a GPU that failed stays unusable until
then.
"""
