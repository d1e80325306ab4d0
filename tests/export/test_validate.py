"""Validation against a stand-in for vLLM-Omni: what is passed on, what is compared, and what may go wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_tuner.domain.errors import DocumentError, EngineError, NotQuantizedError, UsageError
from fa_tuner.domain.study import Recommendation
from fa_tuner.domain.upstream import Release
from fa_tuner.engines.vllm_omni import loader
from fa_tuner.engines.vllm_omni.loader import read_flags, read_stage
from fa_tuner.export import Target, exporter
from fa_tuner.export.target import IN_THE_BASE
from fa_tuner.export.validate import validate
from tests.support import fake_omni

Make = Callable[..., Recommendation]
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install(start="...", version="...")` puts the stand-in on this process's path, and on that of its children."""

    def do(**options: str) -> None:
        folder = fake_omni.install(tmp_path / "site", **options)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return do


def write(folder: Path, text: str) -> Path:
    file = folder / "deploy.yaml"
    file.write_text(text)
    return file


def test_without_vllm_omni(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match="not installed beside fa-tune; do this in the environment that serves"):
        validate("stages: []", Target("deploy"), make(), 0)


@pytest.mark.parametrize("name", ["deploy", "flags"])
def test_what_is_read_is_what_was_meant(install: Install, make: Make, name: str) -> None:
    install()
    recommendation = make()
    found = validate(exporter(name).export(recommendation), Target(name), recommendation, 0)
    assert (found.version, found.dtype) == ("0.30.0", "fp8")
    assert found.skip_steps == {0, 1, 38, 39}
    assert found.skip_layers == {0, 1, 2}


def test_a_difference_names_the_key_what_was_read_and_what_was_meant(install: Install, make: Make) -> None:
    install()
    text = exporter("deploy").export(make()).replace('"0,1,38,39"', '"0,1,38"')
    with pytest.raises(
        NotQuantizedError,
        match=r"0\.30\.0 reads diffusion_kv_cache_skip_steps as \{0, 1, 38\}, which was meant to be \{0, 1, 38, 39\}$",
    ):
        validate(text, Target("deploy"), make(), 0)


def test_a_file_of_which_nothing_is_read_says_why(install: Install, make: Make) -> None:
    install()
    with pytest.raises(NotQuantizedError, match=r"dtype as None, .*The keys must stand below platforms: npu: stages:"):
        validate('diffusion_kv_cache_dtype: "fp8"\nstages: []', Target("deploy"), make(), 0)
    vace = make(environment={"pipeline": "WanVACEPipeline"})
    with pytest.raises(NotQuantizedError, match="ignores a deploy file for WanVACEPipeline, in silence"):
        validate("stages: []", Target("deploy"), vace, 0)
    with pytest.raises(NotQuantizedError, match="The keys must stand"):
        validate("stages: []", Target("deploy", pipeline="p"), vace, 0)
    i2v = make(environment={"pipeline": "WanImageToVideoPipeline"})
    with pytest.raises(NotQuantizedError, match="unless its base_config names a pipeline: where it does not, add"):
        validate("stages: []", Target("deploy", pipeline=IN_THE_BASE), i2v, 0)


def test_what_is_installed_must_read_the_format_and_be_the_version(install: Install, make: Make) -> None:
    install(start="raise SystemExit('not to be imported for this')")
    with pytest.raises(
        UsageError, match=r"vllm-omni 0\.30\.0, .* does not read .*stage-args; use --format deploy or f"
    ):
        validate("stage_args: []", Target("stage-args"), make(), 0)
    with pytest.raises(UsageError, match=r"installed here, 0\.30\.0, but the export is for 0\.26"):
        validate("", Target("flags", Release(0, 26)), make(), 0)


def test_a_reason_of_vllm_omni_is_one_line(install: Install, make: Make) -> None:
    install()
    text = exporter("deploy").export(make()).replace("skip_steps:", "skip_stpes:")
    with pytest.raises(
        DocumentError, match=r"refuses the configuration: Unknown diffusion config field\(s\) for stage 0$"
    ):
        validate(text, Target("deploy"), make(), 0)
    with pytest.raises(DocumentError, match="unrecognized arguments: --other"):
        read_flags("m", ["--other", "1"])


def test_no_such_stage(install: Install, tmp_path: Path) -> None:
    install()
    with pytest.raises(DocumentError, match="there is no stage 3, but 0"):
        read_stage("m", write(tmp_path, "stages: []"), 3)


def test_a_model_that_it_does_not_know_is_not_the_files_fault(install: Install, tmp_path: Path) -> None:
    install()
    with pytest.raises(EngineError, match="cannot say what it would start for unknown: Model 'unknown' is not known"):
        read_stage("unknown", write(tmp_path, "stages: []"))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("import os; os.abort()", "was killed by SIGABRT when it was to read the configuration"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "ended with 1 .*operator torchvision::nms"),
        ("import sys; sys.stderr.write('gone\\n'); sys.exit(3)", "ended with 3 .*: gone"),
        ("import os; os._exit(0)", "ended with 0 .*it wrote nothing"),
        ("import a_library_that_is_missing", "ended with 1 .*No module named 'a_library_that_is_missing'"),
    ],
)
def test_a_child_that_dies_is_an_engine_error(install: Install, tmp_path: Path, start: str, message: str) -> None:
    install(start=start)
    with pytest.raises(EngineError, match=message):
        read_stage("m", write(tmp_path, "stages: []"))


def test_a_child_that_hangs_is_ended_with_what_it_started(install: Install, tmp_path: Path) -> None:
    child = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    pid = tmp_path / "pid"
    install(start=f"{child}; open({str(pid)!r}, 'w').write(str(p.pid)); sys.stderr.write('loading\\n'); time.sleep(60)")
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"not done reading the configuration after 2 s: loading"):
        read_stage("m", write(tmp_path, "stages: []"), timeout=2)
    assert time.monotonic() - begun < 20
    for _ in range(100):  # it is init's to bury
        status = Path(f"/proc/{pid.read_text()}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("what it started still runs")


def test_nothing_is_left_behind(install: Install, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    validate(exporter("deploy").export(make()), Target("deploy"), make(), 0, folder)
    with pytest.raises(NotQuantizedError):
        validate("stages: []", Target("deploy"), make(), 0, folder)
    assert list(folder.iterdir()) == []
    with pytest.raises(DocumentError, match=r"cannot be written to .*nothing was changed"):
        validate("stages: []", Target("deploy"), make(), 0, folder / "missing")
