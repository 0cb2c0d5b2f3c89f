"""The soak: a server under mixed load for a long time, and a verdict on all that must not change meanwhile."""
