"""Starts tritonserver, watches it, starts it anew, drains and ends it; and asks whether it works.

Knows of the models only what they read from the environment. Must not know what they compute.
"""
