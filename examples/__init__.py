"""Models and training loops to read and to run, from the root of a checkout: `python -m examples.train_bytes`."""
