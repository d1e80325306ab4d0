"""A policy merged into a deploy file that somebody keeps, with nothing else in it changed.

Where the keys go follows vLLM-Omni 0.30 (`config/stage_config.py`). Later beats earlier: keys on the stage, its
`engine_args`, the NPU entry (of which only `engine_args` count where it has them), `engine_extras` of either. The
policy is put on the NPU entry; a key that stands elsewhere on the same stage gets the same value, so that no
place can win with another one. The names `kv_cache_*` beside ours are an error there, and refused here.

Where vLLM-Omni would not read the file, it is made to name a pipeline and the model's class. A file that names another
pipeline, or a base that may do so, keeps what it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fa_tuner.documents import one_line, parse_tree
from fa_tuner.domain.errors import DocumentError
from fa_tuner.domain.study import Recommendation
from fa_tuner.domain.upstream import Release
from fa_tuner.export.base import KEYS, values_for
from fa_tuner.export.header import comment_block, replace_block
from fa_tuner.export.splice import Append, Edit, Path, Put, apply, newline_of, splice
from fa_tuner.export.stage_args import StageArgsExporter
from fa_tuner.export.target import IN_THE_BASE, Target

WHAT = "deploy file"
_DEPLOY_KEYS = ("stages", "platforms", "pipeline", "base_config")
_STAGES: Path = ("stages",)
_NPU_STAGES: Path = ("platforms", "npu", "stages")
_LEGACY_STAGES: Path = ("stage_args",)
_ALIASES = tuple(key.removeprefix("diffusion_") for key in KEYS)


def merge_into(
    existing_text: str, recommendation: Recommendation, stage_id: int, where: str, release: Release | None = None
) -> str:
    """The text of a deploy (or legacy stage_args) file with the policy for one stage and its comment block.

    Every other byte stays; merging again replaces the policy and the block. `where` names the file, `release` is as
    in `Exporter.export`.

    Raises:
        DocumentError: the file is no deploy file, or cannot take the policy without changing something else.
        NothingQualifiesError, UsageError: as `Exporter.export`.
    """
    values = values_for(recommendation, stage_id)
    text = existing_text.removeprefix("\ufeff")  # the parsers disagree on whether it counts
    source = f"{WHAT} {one_line(where)}"
    tree = parse_tree(text, WHAT, where, aliases=True)
    before = _load(text, source)
    target = _target(before, release)
    target.check(recommendation)
    legacy = target.format == "stage-args"
    if legacy:
        edits = _legacy_edits(before, stage_id, values, source)
    else:
        edits = _deploy_edits(before, stage_id, values, target.to_name(recommendation), source)
    merged = splice(text, tree, edits, source)
    note = StageArgsExporter().note_for(release) if legacy else ""
    block = comment_block(recommendation, stage_id, target, note)
    merged = replace_block(merged, block, stage_id, newline_of(text))
    if not _holds(merged, apply(_unshared(before), edits), source):
        raise DocumentError(
            f"{source}: the policy for stage {stage_id} cannot be added without changing something else (a shared "
            "anchor?); nothing was written. Export to a file of its own, with base_config, instead"
        )
    return existing_text[: len(existing_text) - len(text)] + merged


def target_of(text: str, where: str, release: Release | None = None) -> Target:
    """Who reads the file: the format that it is in, and whether it says which pipeline it is for.

    Raises:
        DocumentError: it is no YAML mapping that vLLM-Omni could read.
    """
    return _target(_load(text.removeprefix("\ufeff"), f"{WHAT} {one_line(where)}"), release)


def _target(data: Mapping[str, Any], release: Release | None) -> Target:
    named = data.get("pipeline")
    if named is None and data.get("base_config") is not None:
        named = IN_THE_BASE
    return Target("stage-args" if "stage_args" in data else "deploy", release, None if named is None else str(named))


def _holds(text: str, expected: dict[str, Any], source: str) -> bool:
    """Whether `text` is within our limits and vLLM-Omni reads it as `expected`."""
    try:
        parse_tree(text, WHAT, source, aliases=True)
        return _same(_load(text, source), expected)
    except DocumentError:
        return False


def _deploy_edits(
    data: Mapping[str, Any], stage_id: int, values: Mapping[str, str], named: Mapping[str, str], source: str
) -> list[Edit]:
    """`named` is what must be named for the file to be read: a pipeline, and a class on the stage."""
    if not any(key in data for key in _DEPLOY_KEYS):
        raise DocumentError(f"{source} has none of {', '.join(_DEPLOY_KEYS)}; is it a vLLM-Omni deploy file?")
    own = _position(data, _STAGES, stage_id, source)
    npu = _position(data, _NPU_STAGES, stage_id, source)
    edits: list[Edit] = []
    if named and data.get("pipeline") is None:
        edits.append(Put((), "pipeline", named["pipeline"]))
    of_stage = {key: value for key, value in named.items() if key != "pipeline"}
    if own is None:
        edits.append(_addition(data, _STAGES, {"stage_id": stage_id, **of_stage}))
    else:
        edits += [Put(own, key, value) for key, value in of_stage.items() if not _has(data, own, key)]
    if npu is None:
        edits.append(_addition(data, _NPU_STAGES, {"stage_id": stage_id, **values}))
    else:
        edits += _puts(data, npu, values, nested="engine_args" in _at(data, npu))
    for stage in filter(None, (own, npu)):
        edits += _agreeing(data, stage, values, source)
    return _distinct(edits)


def _legacy_edits(data: Mapping[str, Any], stage_id: int, values: Mapping[str, str], source: str) -> list[Edit]:
    if "stages" in data:
        raise DocumentError(f"{source} has both stages and stage_args; keep the one that your vLLM-Omni reads")
    stage = _position(data, _LEGACY_STAGES, stage_id, source)
    if stage is None:
        raise DocumentError(f"{source}: stage_args has no stage {stage_id}; give the id of its diffusion stage")
    if (kind := _at(data, stage).get("stage_type", "diffusion")) != "diffusion":
        raise DocumentError(
            f"{source}: stage {stage_id} has the type {one_line(str(kind), 40)}; only diffusion stages qualify"
        )
    return _distinct([*_puts(data, stage, values, nested=True), *_agreeing(data, stage, values, source)])


def _position(data: Mapping[str, Any], path: Path, stage_id: int, source: str) -> Path | None:
    """The path of the stage in the list at `path`, None where there is none."""
    node: Any = data
    for key in path:
        if not isinstance(node, dict):
            raise DocumentError(f"{source}: {'.'.join(map(str, path))} cannot be reached; its parts must be mappings")
        if (node := node.get(key)) is None:
            return None
    if not isinstance(node, list) or not all(isinstance(entry, dict) and "stage_id" in entry for entry in node):
        raise DocumentError(f"{source}: {'.'.join(map(str, path))} must be a list of stages, each with a stage_id")
    found = [number for number, entry in enumerate(node) if entry["stage_id"] == stage_id]
    if len(found) > 1:
        raise DocumentError(f"{source}: {'.'.join(map(str, path))} has stage {stage_id} twice; keep one")
    return (*path, found[0]) if found else None


def _addition(data: Mapping[str, Any], path: Path, entry: dict[str, Any]) -> Edit:
    """What adds an entry to the list at `path`, with the parents that are missing."""
    node: Any = data
    for depth, key in enumerate(path):
        if node.get(key) is None:
            value: Any = [entry]
            for missing in reversed(path[depth + 1 :]):
                value = {missing: value}
            return Put(path[:depth], str(key), value)
        node = node[key]
    return Append(path, entry)


def _puts(data: Mapping[str, Any], stage: Path, values: Mapping[str, str], nested: bool) -> list[Edit]:
    if not nested:
        return [Put(stage, key, values[key]) for key in KEYS]
    if isinstance(_at(data, stage).get("engine_args"), dict):
        return [Put((*stage, "engine_args"), key, values[key]) for key in KEYS]
    return [Put(stage, "engine_args", dict(values))]


def _agreeing(data: Mapping[str, Any], stage: Path, values: Mapping[str, str], source: str) -> list[Edit]:
    """Every place on the stage where one of the keys already stands gets the same value."""
    edits: list[Edit] = []
    for path in (stage, (*stage, "engine_args"), (*stage, "engine_extras")):
        place = _at(data, path)
        if not isinstance(place, dict):
            continue
        for alias in _ALIASES:
            if place.get(alias) is not None:
                raise DocumentError(
                    f"{source}: {'.'.join(map(str, path))} has {alias}, the old name of diffusion_{alias}; vLLM-Omni "
                    "refuses both together. Delete that line (or, if the stage is a language model, choose the "
                    "diffusion stage), then merge again"
                )
        edits += [Put(path, key, values[key]) for key in KEYS if key in place]
    return edits


def _has(data: Mapping[str, Any], stage: Path, key: str) -> bool:
    """Whether the stage has a value for the key in any place."""
    places = (_at(data, path) for path in (stage, (*stage, "engine_args"), (*stage, "engine_extras")))
    return any(isinstance(place, dict) and place.get(key) is not None for place in places)


def _at(data: Mapping[str, Any], path: Path) -> Any:
    node: Any = data
    for step in path:
        node = node.get(step) if isinstance(node, dict) else node[step]
    return node


def _distinct(edits: list[Edit]) -> list[Edit]:
    return [edit for number, edit in enumerate(edits) if edit not in edits[:number]]


def _load(text: str, source: str) -> dict[str, Any]:
    """As vLLM-Omni reads it: by PyYAML, in YAML 1.1 terms."""
    import yaml

    try:
        loaded = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except (yaml.YAMLError, ValueError) as error:
        reason = one_line(str(getattr(error, "problem", None) or error), 100)
        raise DocumentError(f"{source} cannot be read as vLLM-Omni reads it: {reason}; correct it first") from None
    assert isinstance(loaded, dict)  # `parse_tree` refuses all else
    return loaded


def _unshared(value: Any) -> Any:
    """A copy in which nothing is shared: an edit meant for one place cannot reach another."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _same(one: Any, other: Any) -> bool:
    """Equal in value and type (1, 1.0 and True differ; NaN is itself)."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(inner, other[key]) for key, inner in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return repr(one) == repr(other)
