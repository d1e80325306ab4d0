"""The attention backend that vLLM-Omni would choose on an NPU, its dtypes, and plugins that change the rules."""

from __future__ import annotations

from collections.abc import Iterator

from fa_tuner.engines.verdict import Verdict, cannot, unknown, works
from fa_tuner.engines.vllm_omni.machine import EMULATED_PLATFORM, EMULATION, Machine
from fa_tuner.engines.vllm_omni.stack import Stack
from fa_tuner.engines.vllm_omni.worker import QUANTIZED_ENTRY

VARIABLE = "DIFFUSION_ATTENTION_BACKEND"
SHOWN = ("FLASH_ATTN", "RAINFUSION_ATTN")


def plugin_rows(machine: Machine) -> Iterator[Verdict]:
    what, active = "platform plugin", machine.environment.get(EMULATION) == "1"
    found = machine.installed.platform_plugins()
    for name, distribution in found:
        shown = f"{name} ({distribution}), out of tree"
        if name != EMULATED_PLATFORM:
            yield unknown(what, f"{shown}: it may take the place of vLLM-Omni's own platform, with other rules")
        elif active:
            yield works(what, f"{shown}; {EMULATION}=1: an NPU that there is not, results carry `emulated`")
        else:
            yield works(what, f"{shown}; inactive without {EMULATION}=1")
    if active and EMULATED_PLATFORM not in dict(found):
        yield cannot(what, f"{EMULATION}=1 is set, and no plugin {EMULATED_PLATFORM} is installed")


def backend_row(stack: Stack) -> Verdict:
    """The rules are those of vLLM-Omni's NPU platform, the same from 0.22 to 0.30."""
    what = "attention backend"
    if stack.source is None:
        return unknown(what, "vllm-omni is not there to be read")
    if stack.machine.emulated:
        return unknown(what, f"platform plugin {EMULATED_PLATFORM} chooses it")
    asked = stack.machine.environment.get(VARIABLE, "")
    if asked and not stack.source.mentions("diffusion.data", VARIABLE):
        return unknown(what, f"{VARIABLE}={asked} is set; it cannot be told that vLLM-Omni reads it")
    has_kernels = stack.installed.package("mindiesd") is not None
    if asked and asked.lower() != "auto":
        name, why, remedy = asked.upper(), f"by {VARIABLE}", f"unset {VARIABLE}"
    elif has_kernels:
        name, why, remedy = "FLASH_ATTN", "the default where mindiesd is installed", ""
    else:
        name, why, remedy = "TORCH_SDPA", "the default without mindiesd", "install MindIE-SD"
    if name not in stack.source.backends():
        return cannot(what, f"{name}, {why}, is none of vLLM-Omni {stack.release}; {remedy}")
    declared, entry = stack.source.dtypes(name), QUANTIZED_ENTRY.get(name)
    if entry is None and declared == ():
        silent = stack.release is not None and stack.release.falls_back_silently
        happens = "then runs native after one warning" if silent else "then fails to load"
        return cannot(what, f"{name}, {why}, declares no dtype for an NPU: a model with FP8 {happens}; {remedy}")
    if entry is None:
        return cannot(what, f"{name}, {why}, is none that fa-tune can prove ({', '.join(QUANTIZED_ENTRY)}); {remedy}")
    if not has_kernels:
        return cannot(what, f"{name}, {why}, needs mindiesd, which is not installed; install MindIE-SD")
    if not declared or not stack.source.has_method(name, entry):
        return unknown(what, f"{name}, {why}, has another source than those known")
    return works(what, f"{name}, {why}")


def dtypes_row(stack: Stack, backend: str) -> Verdict:
    what = f"dtypes of {backend}"
    if stack.source is None:
        return unknown(what, "vllm-omni is not there to be read")
    declared = stack.source.dtypes(backend)
    if declared:
        return works(what, ", ".join(declared))
    if backend == "FLASH_ATTN":  # every version with selectors declares some, so it is the reading that failed
        expected = f"; {', '.join(stack.release.dtypes)} by its version" if stack.release is not None else ""
        return unknown(what, f"the declaration cannot be read from its source{expected}")
    if backend not in stack.source.backends():
        return cannot(what, f"vLLM-Omni {stack.release} has no such backend")
    return cannot(what, "none declared for an NPU") if declared == () else unknown(what, "it cannot be read")
