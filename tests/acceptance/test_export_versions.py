"""`export` for a version of vLLM-Omni, and as the installed vLLM-Omni reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import fake_omni
from tests.support.command import FaTune, Result

Run = Callable[..., Result]
MINE = "stages:\n  - stage_id: 0\n    devices: '0'  # mine\n"


@pytest.fixture
def omni(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_omni.install(tmp_path_factory.mktemp("site"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_for_a_version(fa_tune: FaTune, replay: Run) -> None:
    replay().succeeded()
    text = fa_tune("export", "s", "--vllm-omni-version", "0.26.0").succeeded().out
    assert "vLLM-Omni 0.26 only warns" in text
    fa_tune("export", "s", "--vllm-omni-version", "0.20").refused(2, "0.20 has no skip selectors", "0.22")
    fa_tune("export", "s", "--vllm-omni-version", "new").refused(2, "'new' is no version", "0.30")
    fa_tune("export", "s", "--vllm-omni-version", "0.28", "--format", "stage-args").refused(2, "deploy or flags")
    (fa_tune.folder / "mine.yaml").write_text(MINE)
    fa_tune("export", "s", "--vllm-omni-version", "0.30", "--into", "mine.yaml").succeeded()
    assert "vLLM-Omni 0.30 refuses to start" in (fa_tune.folder / "mine.yaml").read_text()


def test_validate_without_vllm_omni(fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fa_tuner.engines.vllm_omni.loader.find_spec", lambda _: None)
    replay().succeeded()
    for more in ((), ("-o", "deploy.yaml"), ("--format", "flags"), ("--format", "stage-args"), ("--json",)):
        refused = fa_tune("export", "s", "--validate", *more).refused(5, "vllm-omni is not installed")
        assert refused.out == ""
    assert fa_tune.files() == {"data", "landscape.json"}


def test_validated(omni: None, fa_tune: FaTune, replay: Run) -> None:
    replay().succeeded()
    done = fa_tune("export", "s", "--validate", "-o", "deploy.yaml").succeeded()
    policy = fa_tune("export", "s", "--json").succeeded().document["policy"]
    steps, layers = policy["skip_steps"], policy["skip_layers"]
    assert done.err.splitlines() == [
        f"validated by vllm-omni 0.30.0: steps {{{steps}}} layers {{{layers}}} as meant", "written: deploy.yaml"
    ]  # fmt: skip
    assert fa_tune("export", "s", "--validate", "--json").succeeded().document["validated_by"] == "vllm-omni 0.30.0"
    assert fa_tune("export", "s", "--json").succeeded().document["validated_by"] == ""
    flags = fa_tune("export", "s", "--validate", "--format", "flags").succeeded()
    assert "--diffusion-kv-cache-dtype" in flags.out
    assert "validated by" in flags.err
    fa_tune("export", "s", "--validate", "--format", "stage-args").refused(2, "0.30.0", "stage-args", "deploy")
    fa_tune("export", "s", "--validate", "--vllm-omni-version", "0.26").refused(2, "0.30.0", "0.26")
    fa_tune("export", "s", "--validate", "--vllm-omni-version", "0.30.1").succeeded()


def test_a_merge_is_validated_before_it_is_written(
    omni: None, fa_tune: FaTune, replay: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay().succeeded()
    mine = fa_tune.folder / "mine.yaml"
    mine.write_text(MINE)
    assert "validated by" in fa_tune("export", "s", "--validate", "--into", "mine.yaml").succeeded().err
    assert "# mine" in mine.read_text()
    for wrong in ("platforms: {npu: {stages: [{stage_id: 1, skip_stpes: '0'}]}}\n", "platforms: {npu: {stages: 3}}\n"):
        mine.write_text(MINE + wrong)
        fa_tune("export", "s", "--validate", "--into", "mine.yaml").refused(2, "mine.yaml" if "3" in wrong else "Unkn")
        assert mine.read_text() == MINE + wrong
    monkeypatch.setattr("fa_tuner.export.merge.values_for", lambda *_: dict.fromkeys(
        ("diffusion_kv_cache_dtype", "diffusion_kv_cache_skip_steps", "diffusion_kv_cache_skip_layers"), "5"
    ))  # fmt: skip
    mine.write_text(MINE)
    fa_tune("export", "s", "--validate", "--into", "mine.yaml").refused(7, "diffusion_kv_cache_dtype as '5'", "'fp8'")
    assert mine.read_text() == MINE
    assert fa_tune.files() == {"data", "landscape.json", "mine.yaml"}


def test_a_base_is_found_from_the_files_folder(
    omni: None, fa_tune: FaTune, replay: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, set[str]]] = []

    def read(model: str, file: Path, stage_id: int) -> None:
        seen.append((file.parent, {path.name for path in file.parent.iterdir()}))
        raise KeyboardInterrupt

    monkeypatch.setattr("fa_tuner.export.validate.read_stage", read)
    replay().succeeded()
    folder = tmp_path / "deploy"
    folder.mkdir()
    (folder / "base.yaml").write_text(MINE)
    (folder / "mine.yaml").write_text("base_config: base.yaml\n")
    fa_tune("export", "s", "--validate", "--into", "deploy/mine.yaml")
    ((where, beside),) = seen
    assert where.resolve() == folder.resolve()
    assert "base.yaml" in beside
    assert {path.name for path in folder.iterdir()} == {"base.yaml", "mine.yaml"}
