"""For all tests."""

import os

# Processes that tests start import the installed restrl, not the source tree they may be started in.
os.environ["PYTHONSAFEPATH"] = "1"
