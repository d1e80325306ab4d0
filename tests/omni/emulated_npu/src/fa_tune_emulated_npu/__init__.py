"""vLLM-Omni's NPU attention path without an NPU, for tests.

vLLM-Omni is not patched in its files: this platform is found through its own plugin group, and gives it what an NPU
machine would: a platform named "npu", and a `mindiesd` with the attention functions, in plain torch on the CPU.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

SWITCH = "FA_TUNE_EMULATE_NPU"


def activate() -> str | None:
    """The entry point of `vllm_omni.platform_plugins`: the platform's class where it is asked for, else None."""
    if os.environ.get(SWITCH) != "1":
        return None
    if find_spec("torch_npu") is not None:
        import torch

        if hasattr(torch, "npu") and torch.npu.is_available():
            # vLLM-Omni would swallow an exception here and go on without this platform, in silence
            sys.exit(
                f"{SWITCH}=1 on a machine with a real NPU: unset it; an emulation beside the device proves nothing"
            )
    return "fa_tune_emulated_npu.platform.EmulatedNPUPlatform"
