"""For all tests."""

import importlib.util
import os

# Processes that tests start import the installed restrl, not the source tree they may be started in.
os.environ["PYTHONSAFEPATH"] = "1"
# Without a GPU the kernels run in Triton's interpreter; triton reads this when a kernel is defined.
if importlib.util.find_spec("torch") is not None:  # without it (.ci/pythons) no kernel is tested
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
