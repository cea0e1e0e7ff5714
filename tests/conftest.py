"""One thread per test process: the suite runs two of them, and small products gain nothing from more.

Without a GPU the generated kernels run under Triton's interpreter, which Triton chooses when it is imported.
"""

import os

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--refresh-expected", action="store_true", help="write the `expected` folders anew instead of comparing with it"
    )
