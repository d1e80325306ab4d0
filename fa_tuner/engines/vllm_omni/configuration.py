"""A stage's diffusion configuration by the code of the vllm-omni in this process; called in the loader's child.

Nothing is started, and nothing of vLLM-Omni is changed but, for as long as it reads, the name of its platform.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fa_tuner.documents import one_line


class _NoSuchStageError(ValueError):
    """Not the model's fault."""


def answer(model: str, stage_id: int, arguments: Mapping[str, str], flags: Sequence[str]) -> dict[str, Any]:
    """The fields of `LoadedStage`; where there is none, "refused" or "failed" with the reason.

    Args:
        arguments: keyword arguments as vLLM-Omni's `Omni` takes them.
        flags: as they stand behind `vllm serve MODEL --omni`.
    """
    import vllm_omni

    try:
        given = {**arguments, **(_parsed(model, flags) if flags else {})}
        config = _loaded(model, given, stage_id)
    except (ImportError, NotImplementedError) as error:  # the latter where there is no platform, up to 0.28
        return {"failed": _reason(error)}
    except _NoSuchStageError as error:
        return {"refused": _reason(error)}
    except Exception as error:
        return {"failed" if _reason(error) == _fault_of(model, stage_id) else "refused": _reason(error)}
    return {
        "version": vllm_omni.__version__,
        "dtype": config.diffusion_kv_cache_dtype,
        "skip_steps": sorted(config.diffusion_kv_cache_skip_step_indices or ()),
        "skip_layers": sorted(config.diffusion_kv_cache_skip_layer_indices or ()),
    }


def _fault_of(model: str, stage_id: int) -> str | None:
    """What is wrong without any configuration."""
    try:
        _loaded(model, {}, stage_id)
    except Exception as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    """What it says, on one line; of pydantic's list the first entry."""
    found = error.errors()[:1] if isinstance(error, ValueError) and hasattr(error, "errors") else []
    said = " ".join(str(error).split())
    for entry in found:
        said = ": ".join(filter(None, (".".join(map(str, entry["loc"])), entry["msg"])))
    return one_line(said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}", 400)


def _parsed(model: str, flags: Sequence[str]) -> dict[str, Any]:
    """What vLLM-Omni's own command line hands on."""
    from vllm_omni.entrypoints.cli.serve import OmniServeCommand
    from vllm_omni.utils.tracking_parser import TrackingArgumentParser

    parser, said = TrackingArgumentParser(), io.StringIO()
    OmniServeCommand().subparser_init(parser.add_subparsers(dest="subparser"))
    try:
        with contextlib.redirect_stderr(said):
            found = parser.parse_args(["serve", model, "--omni", *flags])
    except SystemExit:
        raise ValueError(said.getvalue().rpartition("error: ")[2].strip()) from None
    return {k: v for k, v in found.get_explicit_kwargs_dict().items() if k not in ("subparser", "model_tag", "omni")}


def _loaded(model: str, given: Mapping[str, Any], stage_id: int) -> Any:
    """The stage's diffusion configuration."""
    try:
        from vllm_omni.config.resolver import resolve_omni_config
        from vllm_omni.entrypoints.utils import prepare_stage_config_inputs
    except ImportError:
        return _loaded_up_to_0_28(model, given, stage_id)
    with _named_npu():
        inputs = prepare_stage_config_inputs(model, given, trust_remote_code=None)
        found = resolve_omni_config(
            inputs.model, trust_remote_code=None, deploy_config_path=inputs.deploy_config_path,
            cli_overrides=inputs.kwargs, stage_overrides=inputs.stage_overrides,
            strategy_config_path=inputs.strategy_config_path,
        )  # fmt: skip
        return _stage(found.stage_configs, stage_id).diffusion_config


def _loaded_up_to_0_28(model: str, given: Mapping[str, Any], stage_id: int) -> Any:
    """By the engine's own method, on an engine that was not started. Tried on the configuration code of 0.22, 0.24,
    0.26 and 0.28 alone: none of these was installed as a whole."""
    from vllm_omni.diffusion.data import OmniDiffusionConfig
    from vllm_omni.engine.async_omni_engine import AsyncOmniEngine
    from vllm_omni.engine.stage_init_utils import build_engine_args_dict, extract_stage_metadata

    resolve = AsyncOmniEngine.__new__(AsyncOmniEngine)._resolve_stage_configs
    takes_trust = "trust_remote_code" in inspect.signature(resolve).parameters  # from 0.26 on
    with _named_npu():
        _, stages = resolve(model, dict(given), **({"trust_remote_code": None} if takes_trust else {}))
        stage = _stage(stages, stage_id)
        extract_stage_metadata(stage)  # the next to read it; refuses a legacy stage that lacks a key
        return OmniDiffusionConfig.from_kwargs(**build_engine_args_dict(stage, model))


def _stage(stages: Sequence[Any], stage_id: int) -> Any:
    found = next((stage for stage in stages if stage.stage_id == stage_id), None)
    if found is None:
        raise _NoSuchStageError(
            f"there is no stage {stage_id}, but {', '.join(str(stage.stage_id) for stage in stages)}"
        )
    if found.stage_type != "diffusion":
        raise _NoSuchStageError(f"stage {stage_id} is no diffusion stage")
    return found


@contextlib.contextmanager
def _named_npu() -> Iterator[None]:
    """Lets `platforms: npu:` of a deploy file count on any machine. vLLM-Omni applies the entry that has the name of
    the current platform, and looks that up in this module whenever it loads a file (config/stage_config.py,
    `_apply_platform_overrides`). On an NPU the name is right as it is."""
    from vllm_omni import platforms

    real = platforms.current_omni_platform
    if str(real.device_name).lower() == "npu":
        yield
        return
    platforms.current_omni_platform = _NamedNpu(real)
    try:
        yield
    finally:
        platforms.current_omni_platform = real


class _NamedNpu:
    """The real platform under another name."""

    device_name = "npu"

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
