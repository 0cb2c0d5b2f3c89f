"""Fuzzing of a live server over real sockets: `python -m tests.fuzz`, and a small share of it in the tests."""
