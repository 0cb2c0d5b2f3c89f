"""Benchmarks: what is compared is measured side by side in one run, and every run leaves its raw numbers behind."""
