"""Whether vLLM-Omni's selectors can work on one model, read from its configuration and from vLLM-Omni's source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fa_tuner.domain.errors import EngineError, UsageError
from fa_tuner.domain.upstream import PUBLISHED_SINCE, Release
from fa_tuner.engines.fitting import PIPELINES
from fa_tuner.engines.model_files import local_path, locate, parse_index, read_index
from fa_tuner.engines.verdict import Verdict, cannot, unknown, works
from fa_tuner.engines.vllm_omni.published import AttentionCall, Published, published
from fa_tuner.engines.vllm_omni.stack import Stack

CACHE_VARIABLES = ("DIFFUSION_CACHE_BACKEND", "DIFFUSION_CACHE_ADAPTER")
_CONFIGURATIONS = ("model_index.json", "transformer*/config.json")


def model_rows(model: str, stack: Stack) -> Iterator[Verdict]:
    """Nothing but configurations is fetched of a hub model that is not here.

    Raises:
        NotFoundError: neither a folder here nor a model on the hub.
        UsageError: the path of a file.
    """
    try:
        folder = locate(model, None, only=_CONFIGURATIONS)
    except EngineError as error:
        yield unknown("model", str(error))
        return
    here = local_path(model) is not None
    try:
        index = read_index(folder) if here else parse_index(folder)
    except UsageError as error:
        yield cannot("model", str(error))
        return
    yield works("model", str(folder) if here else f"{model}, by its configuration; weights were not looked for")
    name: str = index["_class_name"]
    found = _published(name, stack)
    yield _pipeline(name, stack)
    yield _step_index(name, found, stack)
    yield _layer_index(name, found, stack)
    yield _eligible(found)
    experts = sorted(part for part, of in index.items() if part.startswith("transformer") and _is_there(of))
    configurations = {part: _configuration(folder / part / "config.json") for part in experts}
    yield _head_dim(configurations, stack)
    yield _blocks(configurations, found)
    yield _step_cache(stack)


def _is_there(part: object) -> bool:
    return isinstance(part, list) and len(part) == 2 and part[0] is not None


def _configuration(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _published(name: str, stack: Stack) -> Published | None:
    """None where the pipeline's source cannot be read."""
    where = None if stack.source is None else (stack.source.pipelines() or {}).get(name)
    return None if stack.source is None or where is None else published(stack.source, *where)


def _pipeline(name: str, stack: Stack) -> Verdict:
    table = None if stack.source is None else stack.source.pipelines()
    if name not in PIPELINES:
        driven = " and ".join(PIPELINES)
        here = f", which vLLM-Omni runs as {table[name][1]}" if table and name in table else ""
        return cannot("pipeline", f"{name}{here}; fa-tune drives {driven}")
    if table is None:
        reason = "vllm-omni is not installed" if stack.source is None else "its registry has another shape"
        return unknown("pipeline", f"{name}; vLLM-Omni's class for it cannot be read: {reason}")
    if name not in table:
        return cannot("pipeline", f"{name}; vLLM-Omni {stack.release} has no pipeline of that name")
    return works("pipeline", f"{name}, run as {table[name][1]}")


def _known(name: str, stack: Stack) -> bool | None:
    """Whether this pipeline is on record as publishing both indices in this release; None where there is no release."""
    if stack.release is None:
        return None
    return name in PUBLISHED_SINCE and stack.release >= Release(*PUBLISHED_SINCE[name])


def _by_record(what: str, name: str, stack: Stack) -> Verdict:
    """Without the source, the record has to do."""
    since = PUBLISHED_SINCE.get(name)
    if since is None:
        return cannot(what, f"{name} is not on record as publishing one in any version")
    if _known(name, stack) is False:
        return cannot(what, f"published from vLLM-Omni {Release(*since)} on; install a newer one than {stack.release}")
    return unknown(what, f"published from vLLM-Omni {Release(*since)} on; the installed source could not be read")


def _step_index(name: str, found: Published | None, stack: Stack) -> Verdict:
    what = "step index"
    if found is None:
        return _by_record(what, name, stack)
    if found.steps and _known(name, stack):
        return works(what, f"published at {found.steps[0]}")
    if found.steps:
        return unknown(
            what, f"published at {found.steps[0]}, but this pipeline is not on record: nothing of it was tried"
        )
    if _known(name, stack):
        return unknown(what, "on record as published, but the installed source shows no place that does")
    what_happens = "quantize every step" if _silent(stack) else "leave every step native"
    return cannot(what, f"published nowhere in the pipeline's source: skip_steps would {what_happens}")


def _layer_index(name: str, found: Published | None, stack: Stack) -> Verdict:
    what = "layer index"
    if found is None:
        return _by_record(what, name, stack)
    if not found.attention:
        return unknown(what, "no attention module was found in what the pipeline's source refers to")
    if found.without_layer:
        what_happens = "they stay quantized whatever skip_layers says" if _silent(stack) else "skip_layers is refused"
        return cannot(what, f"no prefix, so no index, at {_places(found.without_layer)}: {what_happens}")
    if not found.eligible:
        return cannot(what, "every attention module opts out of quantization (disable_kv_quant=True)")
    return works(what, f"by the prefix, at {_places(found.eligible)}")


def _silent(stack: Stack) -> bool:
    return stack.release is None or stack.release.falls_back_silently


def _places(calls: tuple[AttentionCall, ...]) -> str:
    return ", ".join(f"{call.owner} ({call.place})" for call in calls)


def _eligible(found: Published | None) -> Verdict:
    what = "eligible attention"
    if found is None or not found.attention:
        return unknown(what, "the pipeline's source could not be read")
    if not found.eligible:
        return cannot(what, "none: every attention module opts out by disable_kv_quant=True")
    out = sorted({call.owner for call in found.attention if call.opts_out})
    owners = ", ".join(sorted({call.owner for call in found.eligible}))
    return works(what, f"{owners} of every block" + (f"; opted out: {', '.join(out)}" if out else ""))


def _head_dim(configurations: dict[str, dict[str, Any]], stack: Stack) -> Verdict:
    what = "head dim"
    sizes = [config.get("attention_head_dim") for config in configurations.values()]
    size = sizes[0] if sizes and sizes == sizes[:1] * len(sizes) else None
    if not isinstance(size, int) or size < 1:
        return unknown(what, "transformer/config.json names no attention_head_dim, or the transformers differ in it")
    if size & (size - 1):
        if stack.needs_msmodelslim:
            return unknown(what, f"{size} is no power of two; msmodelslim may have no rotation for it")
        return cannot(what, f"{size} is no power of two, which the rotation before quantization needs")
    listed = None if stack.source is None else stack.source.head_sizes("FLASH_ATTN")
    if listed and size not in listed:
        return unknown(what, f"{size}, which FLASH_ATTN does not list ({', '.join(map(str, listed))})")
    return works(what, f"{size}, a power of two" + (" that FLASH_ATTN lists" if listed else ""))


def _blocks(configurations: dict[str, dict[str, Any]], found: Published | None) -> Verdict:
    what = "blocks"
    depths = {part: config.get("num_layers") for part, config in configurations.items()}
    if not depths or not all(isinstance(depth, int) for depth in depths.values()):
        return unknown(what, "transformer/config.json names no num_layers")
    if len(set(depths.values())) > 1:
        shown = ", ".join(f"{depth} in {part}" for part, depth in depths.items())
        return cannot(what, f"{shown}; one layer index cannot name both")
    depth = next(iter(depths.values()))
    of = f" in each of {' and '.join(depths)}; one index names the block in both" if len(depths) > 1 else ""
    families = f"; indices of {' and of '.join(found.blocks)}" if found is not None and len(found.blocks) > 1 else ""
    return works(what, f"{depth}{of}{families}")


def _step_cache(stack: Stack) -> Verdict:
    environment = stack.machine.environment
    for variable in CACHE_VARIABLES:
        if environment.get(variable, "").lower() not in ("", "none"):
            return cannot(
                "step cache", f"{variable}={environment[variable]}: cached steps run no block, so it cannot be proven "
                "which ran quantized; unset it to tune",
            )  # fmt: skip
    return works("step cache", "none by the environment; with TeaCache or cache-dit cached steps run no block")
