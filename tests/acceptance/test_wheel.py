"""The wheel: what is in it, and that it works where the source is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from fa_tuner.engines.synthetic import synthetic_landscape

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def ran(*command: str | Path, **more: str | Path | dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    output: str = done.stdout
    return output


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes beside the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("fa_tuner", "api"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    ran(*build, "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    ran(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def python(installed: Path, cwd: Path, code: str, *arguments: str | Path) -> str:
    """Run code with the installed wheel before the editable source, in a folder that holds neither."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FA_TUNE_")}
    environment |= {"PYTHONPATH": str(installed), "FA_TUNE_STORAGE": f"sqlite:///{cwd}/data/fa-tune.db"}
    environment |= {"FA_TUNE_ARTIFACTS": f"{cwd}/data/artifacts", "OMP_WAIT_POLICY": "passive"}
    return ran(sys.executable, "-P", "-c", code, *arguments, cwd=cwd, env=environment)


FA_TUNE = "from fa_tuner.cli import main; main()"


def test_it_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = {"fa_tuner/py.typed"} | {
        str(path.relative_to(ROOT)) for path in (ROOT / "fa_tuner" / "evaluate" / "profiles").glob("*.yaml")
    }
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "fa_tuner").rglob("*.py")} | data
    api = [path.relative_to(ROOT / "api") for path in (ROOT / "api").rglob("*") if path.is_file()]
    expected |= {f"fa_tuner_api/{path}" for path in api if path.suffix != ".pyc"}
    assert len(data) > 1
    assert names == expected
    migrations = {"v0001_first.py", "v0002_claims.py", "v0003_keys.py", "v0004_jobs.py"}
    assert {f"fa_tuner/store/migrations/versions/{name}" for name in migrations} <= set(names)


def test_its_entry_points(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        text = archive.read(name).decode()
    assert "fa-tune = fa_tuner.cli:main" in text
    assert "[fa_tuner.engines]" in text
    assert "replay = fa_tuner.engines.replay:ReplayEngine" in text


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import fa_tuner, fa_tuner_api; print(fa_tuner.__file__); print(fa_tuner_api.__file__)"
    for line in python(installed, tmp_path, code).splitlines():
        assert Path(line).is_relative_to(installed)
    assert python(installed, tmp_path, FA_TUNE, "--version").strip() == "0.1.0"
    assert (installed / "bin" / "fa-tune").is_file()


def test_a_study_in_a_new_store_and_the_service_on_it(installed: Path, tmp_path: Path) -> None:
    """Migrations and the shipped device profile are found."""
    synthetic_landscape(4, 3, prompts=1).write(tmp_path / "landscape.json")
    run = (
        "run",
        "--engine",
        "replay",
        "--model",
        "landscape.json",
        "--study",
        "s",
        "--trials",
        "3",
        "--min-psnr",
        "10",
    )
    assert "projected from profile ascend-pr2640" in python(installed, tmp_path, FA_TUNE, *run)
    assert (tmp_path / "data" / "fa-tune.db").is_file()
    assert "diffusion_kv_cache_dtype" in python(installed, tmp_path, FA_TUNE, "export", "s")
    served = "from fa_tuner_api import create_app; print(sorted(create_app().openapi()['paths']))"
    assert "/api/v1/recommendations" in python(installed, tmp_path, served)
