"""The whole report: a model's rows, the summary, and that nothing is loaded for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import NotFoundError, UsageError
from fa_tuner.engines import doctor
from fa_tuner.engines.verdict import Verdict, cannot, unknown, works
from fa_tuner.engines.vllm_omni.npu import Devices
from tests.support.site_packages import SitePackages


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All three engines work, whatever is installed beside the tests; leave one out by removing it."""
    names = ["diffusers", "replay", "vllm-omni"]
    monkeypatch.setattr(doctor, "_engines", lambda: (works(f"engine {name}", "") for name in names))
    return names


@pytest.fixture
def site(tmp_path: Path) -> SitePackages:
    (tmp_path / "site").mkdir()
    return SitePackages(tmp_path / "site")


def model(tmp_path: Path, name: str = "WanPipeline", head_dim: Any = 128, depths: tuple[Any, ...] = (40, 40)) -> str:
    """A folder that looks whole; nothing in it can be loaded."""
    index: dict[str, Any] = {"_class_name": name, "transformer_2": [None, None]}
    for number, depth in enumerate(depths, 1):
        part = "transformer" if number == 1 else f"transformer_{number}"
        index[part] = ["diffusers", "WanTransformer3DModel"]
        (tmp_path / "model" / part).mkdir(parents=True)
        config = {"attention_head_dim": head_dim, "num_layers": depth}
        (tmp_path / "model" / part / "config.json").write_text(json.dumps(config))
        (tmp_path / "model" / part / "weights.safetensors").touch()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    return str(tmp_path / "model")


def rows(site: SitePackages, model: str | None = None) -> dict[str, Verdict]:
    found = doctor.report(model, site.machine)
    assert len({row.what for row in found}) == len(found)
    assert found[-1].what == "summary"
    return {row.what: row for row in found}


def says(row: Verdict, verdict: str, *words: str) -> None:
    assert row.verdict == verdict, row
    for word in words:
        assert word in row.detail, row


# --- the summary ----------------------------------------------------------------------------------------------------


def test_a_machine_that_has_everything(site: SitePackages, tmp_path: Path) -> None:
    found = rows(site.complete(), model(tmp_path))
    assert {row.what for row in found.values() if row.verdict != "works"} == set()
    assert found["summary"].detail == "FP8 attention can be tuned here with engine vllm-omni"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda site: setattr(site, "devices", Devices(("Ascend910B3",))), "device: 1 x Ascend910B3 (A2)"),
        (lambda site: site.module("mindiesd.__init__", ""), "mindiesd: 3.2.0 has no mindiesd.quant_attention"),
        (lambda site: site.environment.update(DIFFUSION_ATTENTION_BACKEND="TORCH_SDPA"), "attention backend: TORCH"),
        (lambda site: site.environment.update(DIFFUSION_CACHE_BACKEND="cache_dit"), "step cache: DIFFUSION_CACHE"),
    ],
)
def test_the_first_thing_that_cannot_leaves_the_emulated_operator(
    site: SitePackages, tmp_path: Path, spoil: Any, reason: str
) -> None:
    spoil(site.complete())
    says(rows(site, model(tmp_path))["summary"], "works", "engine diffusers (emulated", f"vllm-omni cannot: {reason}")


def test_what_cannot_be_told_is_not_promised(site: SitePackages) -> None:
    site.complete().devices = Devices(("Ascend970",))
    says(rows(site)["summary"], "unknown", "nothing speaks against engine vllm-omni", "of device: 1 x Ascend970")
    (site.folder / "cann" / "aarch64-linux" / "ascend_toolkit_install.info").unlink()
    says(rows(site)["summary"], "unknown", "nor 1 more")


def test_nothing_can_be_tuned_without_any_engine(site: SitePackages, engines: list[str]) -> None:
    engines.remove("vllm-omni")
    says(rows(site.complete())["summary"], "works", "engine diffusers", "not among the engines of this fa-tune")
    found = [cannot("engine diffusers", "torch missing"), cannot("device", "no NPU; x"), works("engine vllm-omni", "")]
    says(doctor.summary(found, emulated=False), "cannot", "cannot: device: no NPU; engine diffusers: torch missing")


def test_the_emulated_npu_needs_no_npu(site: SitePackages, tmp_path: Path) -> None:
    site.complete().distribution("fa-tune-emulated-npu", "0.1.0", plugin="fa_tune_emulated_npu")
    site.environment["FA_TUNE_EMULATE_NPU"] = "1"
    site.devices = Devices()
    says(rows(site, model(tmp_path))["summary"], "works", "engine vllm-omni on an emulated NPU", "carry `emulated`")
    site.environment.clear()
    says(
        rows(site, model(tmp_path / "again"))["summary"], "works", "engine diffusers", "device: torch_npu finds no NPU"
    )


def test_a_rainfusion_without_dtypes_is_nobodys_obstacle(site: SitePackages) -> None:
    site.complete().module("vllm_omni.diffusion.attention.backends.rainfusion_attn", "class Impl: ...")
    found = rows(site)
    assert found["dtypes of RAINFUSION_ATTN"].verdict == "cannot"
    says(found["summary"], "works", "with engine vllm-omni")
    assert (
        doctor.summary([unknown("dtypes of FLASH_ATTN", ""), works("engine vllm-omni", "")], False).verdict == "works"
    )


# --- a model --------------------------------------------------------------------------------------------------------


def test_a_model_of_two_experts(site: SitePackages, tmp_path: Path) -> None:
    found = rows(site.complete(), model(tmp_path))
    says(found["pipeline"], "works", "WanPipeline, run as Wan22Pipeline")
    says(found["step index"], "works", "diffusion/models/wan/pipeline_wan.py:10")
    says(found["layer index"], "works", "SelfAttention (diffusion/models/wan/wan_transformer.py:")
    says(found["eligible attention"], "works", "SelfAttention of every block; opted out: CrossAttention")
    says(found["head dim"], "works", "128, a power of two that FLASH_ATTN lists")
    says(found["blocks"], "works", "40 in each of transformer and transformer_2")


def test_a_model_without_vllm_omni_goes_by_the_record(site: SitePackages, tmp_path: Path) -> None:
    found = rows(site, model(tmp_path, depths=(30,)))
    says(found["pipeline"], "unknown", "not installed")
    says(found["step index"], "unknown", "from vllm-omni 0.22 on".replace("vllm-omni", "vLLM-Omni"))
    says(found["eligible attention"], "unknown")
    says(found["head dim"], "works", "128, a power of two")
    says(found["blocks"], "works", "30")
    says(found["summary"], "works", "engine diffusers")


def test_a_pipeline_that_nothing_here_can_tune(site: SitePackages, tmp_path: Path) -> None:
    found = rows(site.complete(), model(tmp_path, "QwenImagePipeline"))
    says(found["pipeline"], "cannot", "fa-tune drives WanPipeline and WanImageToVideoPipeline")
    says(found["step index"], "cannot", "leave every step native")
    says(found["layer index"], "cannot", "QwenImagePipeline (diffusion/models/qwen/", "skip_layers is refused")
    says(found["summary"], "cannot", "cannot: pipeline: QwenImagePipeline")
    site.devices = Devices()
    found = rows(site, model(tmp_path / "x", "NoSuchPipeline"))
    says(found["step index"], "cannot", "not on record")
    says(found["summary"], "cannot", "cannot: pipeline: NoSuchPipeline")


def test_an_old_vllm_omni_takes_what_it_cannot_do_in_silence(site: SitePackages, tmp_path: Path) -> None:
    found = rows(site.old_omni(), model(tmp_path, "QwenImagePipeline", head_dim=96))
    says(found["step index"], "cannot", "quantize every step")
    says(found["layer index"], "cannot", "stay quantized whatever skip_layers says")
    says(found["head dim"], "unknown", "96 is no power of two", "msmodelslim")


def test_a_release_before_the_pipeline_was_published(site: SitePackages, tmp_path: Path) -> None:
    site.omni("0.26.0")
    says(rows(site, model(tmp_path, "MiniMaxH3Pipeline"))["step index"], "cannot", "from vLLM-Omni 0.28 on")


def test_record_and_source_that_contradict_each_other(site: SitePackages, tmp_path: Path) -> None:
    name, table = "MinePipeline", '_DIFFUSION_MODELS = {"MinePipeline": ("wan", "pipeline_wan", "Wan22Pipeline")}'
    site.complete().module("vllm_omni.diffusion.registry", table)
    says(rows(site, model(tmp_path, name))["step index"], "unknown", "not on record")
    site.module("vllm_omni.diffusion.registry", table.replace(name, "WanPipeline"))
    site.module("vllm_omni.diffusion.models.wan.pipeline_wan", "class Wan22Pipeline: ...")
    found = rows(site, model(tmp_path / "x"))
    says(found["step index"], "unknown", "shows no place")
    says(found["layer index"], "unknown", "no attention module")
    site.module("vllm_omni.diffusion.registry", "_DIFFUSION_MODELS = {}")
    says(rows(site, model(tmp_path / "y"))["pipeline"], "cannot", "no pipeline of that name")
    site.module("vllm_omni.diffusion.registry", "")
    says(rows(site, model(tmp_path / "z"))["pipeline"], "unknown", "another shape")


def test_attention_that_all_opts_out(site: SitePackages, tmp_path: Path) -> None:
    text = "from vllm_omni.diffusion.attention.layer import Attention\n"
    text += "class Wan22Pipeline:\n    a = Attention(prefix='blocks.0', disable_kv_quant=True)"
    site.complete().module("vllm_omni.diffusion.models.wan.pipeline_wan", text)
    found = rows(site, model(tmp_path))
    says(found["layer index"], "cannot", "opts out")
    says(found["eligible attention"], "cannot", "none")


@pytest.mark.parametrize(
    ("head_dim", "verdict", "words"),
    [(96, "cannot", "no power of two"), (256, "unknown", "does not list (64, 96, 128)"), (None, "unknown", "names no")],
)
def test_head_dims(site: SitePackages, tmp_path: Path, head_dim: Any, verdict: str, words: str) -> None:
    found = rows(site.complete(), model(tmp_path, head_dim=head_dim))
    says(found["head dim"], verdict, words)
    assert found["summary"].verdict == verdict


def test_experts_of_different_depth(site: SitePackages, tmp_path: Path) -> None:
    says(rows(site, model(tmp_path, depths=(4, 6)))["blocks"], "cannot", "4 in transformer, 6 in transformer_2")
    says(rows(site, model(tmp_path / "x", depths=(None,)))["blocks"], "unknown", "num_layers")


def test_configurations_that_are_none(site: SitePackages, tmp_path: Path) -> None:
    folder = Path(model(tmp_path, depths=(4,)))
    for text in ("[]", "{", "", '{"attention_head_dim": [64], "num_layers": [4]}'):
        (folder / "transformer" / "config.json").write_text(text)
        found = rows(site, str(folder))
        assert (found["head dim"].verdict, found["blocks"].verdict) == ("unknown", "unknown")


def test_a_model_that_is_not_whole_or_not_there(site: SitePackages, tmp_path: Path) -> None:
    folder = Path(model(tmp_path, depths=(4,)))
    (folder / "transformer" / "weights.safetensors").unlink()
    found = rows(site, str(folder))
    says(found["model"], "cannot", "no weights")
    assert "pipeline" not in found
    says(found["summary"], "cannot", "cannot:")
    with pytest.raises(NotFoundError):
        rows(site, "/no/such/folder")
    with pytest.raises(UsageError):
        rows(site, str(folder / "model_index.json"))


def test_of_a_hub_model_only_the_configuration_is_read(
    site: SitePackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    folder = Path(model(tmp_path, depths=(4,)))
    (folder / "transformer" / "weights.safetensors").unlink()
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    says(rows(site, "someone/some-model")["model"], "works", "someone/some-model", "weights were not looked for")
    assert asked == [["model_index.json", "transformer*/config.json"]]


def test_a_hub_that_cannot_be_reached(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = rows(site, "someone/some-model")
    says(found["model"], "unknown", "cannot be reached")
    assert "pipeline" not in found


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom fa_tuner.engines.doctor import report\nreport()\n"
        "heavy = {'torch', 'vllm_omni', 'vllm', 'diffusers', 'transformers', 'mindiesd'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
