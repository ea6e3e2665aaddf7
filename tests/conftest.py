"""For all tests."""

import os

import torch

# Processes that tests start import the installed restrl, not the source tree they may be started in.
os.environ["PYTHONSAFEPATH"] = "1"
# Without a GPU the kernels run in Triton's interpreter; triton reads this when a kernel is defined.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
