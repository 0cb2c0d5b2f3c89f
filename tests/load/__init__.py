"""Load tests with locust: who calls (`users`), how many and when (`shapes`), and what passes (`limits`)."""
