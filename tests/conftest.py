"""One thread per test process: the suite runs two of them, and small products gain nothing from more."""

import torch

torch.set_num_threads(1)
