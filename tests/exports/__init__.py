"""Plain exports of frameworks, read and answered: `python -m tests.exports --write DIR`, then `--answer DIR`.

Frameworks are no dependencies of the tests: what is not installed is left out, and the test skips without PyTorch.
"""
