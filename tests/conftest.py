"""What all tests share: one thread, no GPU unless a test asks for it, and no look at the Hugging Face hub."""

from __future__ import annotations

import glob
import os

# Before anything imports torch; inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not glob.glob("/dev/nvidia[0-9]*"):
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
