"""Reading a landscape file strictly: what is wrong is said with its place, before anything is used."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fa_tuner.domain.errors import DocumentError, NotFoundError, SelectorError, UsageError
from fa_tuner.domain.measurement import METRICS
from fa_tuner.domain.policy import DTYPES, NATIVE, Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Shadow
from fa_tuner.engines.landscape import (
    FORMAT,
    VERSION,
    Landscape,
    LatencyModel,
    Numbers,
    Record,
    Shadows,
    Table,
    named,
    only,
    take,
)  # fmt: skip
from fa_tuner.engines.synthetic import Synthetic

MAX_BYTES = 256 * 2**20  # of the file, and of what it decompresses to


def read_landscape(path: Path) -> Landscape:
    """See `Landscape.read`."""
    try:
        return _landscape(_load(path))
    except UsageError as error:
        raise DocumentError(f"landscape {str(path)!r}: {error}; docs/landscapes.md describes the format") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DocumentError(f"it has {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no landscape {str(path)!r}; give the path of a recorded one") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DocumentError(f"it cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > MAX_BYTES:
        raise DocumentError(f"it decompresses to more than {MAX_BYTES} bytes")
    try:
        document = json.loads(data.decode(), parse_constant=_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except ValueError as error:  # of the decoder, of JSON, of a number with too many digits
        raise DocumentError(f"it is not JSON ({error})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DocumentError(f'it has no "format": "{FORMAT}"')
    return document


def _constant(name: str) -> NoReturn:
    raise DocumentError(f"it holds {name}, which is not JSON; numbers must be finite")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise DocumentError(f"a key is given twice among {ascii([name for name, _ in pairs])[:80]}")
    return document


def _landscape(document: dict[str, Any]) -> Landscape:
    version = take(document, "", "version", int)
    if version != VERSION:
        raise DocumentError(
            f"version is {version}; this fa-tune reads version {VERSION}, so use the release that wrote it"
        )
    sections = {"evaluations", "synthetic"} & set(document)
    if len(sections) != 1:
        raise DocumentError("it must have either evaluations or synthetic")
    section = sections.pop()
    known = ("format", "version", "workload", "environment", "made_by", "noise_floor_db", "latency", section)
    only(document, "", (*known, "shadows") if section == "evaluations" else known)
    workload = Workload.from_document(take(document, "", "workload", dict))
    environment = dict(take(document, "", "environment", dict))
    grid, dtypes = _environment(environment, workload)
    del environment["dtypes"]
    latency = _latency(take(document, "", "latency", dict), dtypes)
    content = take(document, "", section, dict)
    record: Record
    if section == "evaluations":
        record = _table(content, workload, grid, dtypes)
    else:
        record = Synthetic.from_document(content, workload, grid, dtypes)
    made_by = take(document, "", "made_by", str)
    noise_floor = float(take(document, "", "noise_floor_db", float, int))
    shadows = take(document, "", "shadows", dict) if "shadows" in document else None
    return Landscape(
        workload, environment, dtypes, made_by, noise_floor, latency, record,
        {} if shadows is None else _shadows(shadows, record.cases, grid, dtypes),
    )  # fmt: skip


def _environment(document: dict[str, Any], workload: Workload) -> tuple[Grid, tuple[str, ...]]:
    where = "environment"
    texts, numbers = ("engine", "device", "operator", "pipeline"), ("steps", "calls_per_cell")
    only(document, where, (*texts, *numbers, "layers", "dtypes", "versions"))
    for name in texts:
        take(document, where, name, str)
    for name in numbers:
        if not 1 <= take(document, where, name, int) <= 1000:
            raise DocumentError(f"{where}.{name} is {document[name]}; it must lie between 1 and 1000")
    if document["steps"] != workload.steps:
        raise DocumentError(f"{where}.steps is {document['steps']}, but workload.steps is {workload.steps}")
    layers = take(document, where, "layers", list)
    whole = all(type(layer) is int and 0 <= layer < 10_000 for layer in layers)
    if not layers or not whole or layers != sorted(set(layers)):
        raise DocumentError(f"{where}.layers must be ascending layer indices from 0 to 9999")
    dtypes = take(document, where, "dtypes", list)
    if not dtypes or not all(dtype in DTYPES for dtype in dtypes) or len(set(dtypes)) != len(dtypes):
        raise DocumentError(f"{where}.dtypes must be different ones of {', '.join(DTYPES)}")
    if not all(isinstance(version, str) for version in take(document, where, "versions", dict).values()):
        raise DocumentError(f"{where}.versions must be text by name")
    return Grid(document["steps"], tuple(layers)), tuple(dtypes)


def _latency(document: dict[str, Any], dtypes: Sequence[str]) -> LatencyModel:
    names = ("native_denoise_seconds", "native_end_to_end_seconds", "attention_share")
    only(document, "latency", (*names, "attention_ratio"))
    ratios = take(document, "latency", "attention_ratio", dict)
    return LatencyModel(
        **{name: float(take(document, "latency", name, float, int)) for name in names},
        attention_ratio={
            dtype: float(take(ratios, "latency.attention_ratio", dtype, float, int)) for dtype in (*dtypes, *ratios)
        },
    )


def _table(document: dict[str, Any], workload: Workload, grid: Grid, dtypes: Sequence[str]) -> Table:
    where = "evaluations"
    only(document, where, ("policies", "cases", "metrics", "identical", "relative_latency"))
    policies = _policies(take(document, where, "policies", list), grid, dtypes)
    cases = _cases(take(document, where, "cases", list), workload)
    metrics = take(document, where, "metrics", dict)
    only(metrics, f"{where}.metrics", METRICS)
    values = np.empty((len(METRICS), len(cases), len(policies)))
    for i, name in enumerate(METRICS):
        rows = take(metrics, f"{where}.metrics", name, list)
        at = f"{where}.metrics.{name}"
        _count(rows, len(cases), at, "cases")
        for j, row in enumerate(rows):
            values[i, j] = _numbers(row, len(policies), f"{at}[{j}]", "policies")
    missing = np.isnan(values)
    if (missing != missing[0]).any():
        case, policy = np.argwhere((missing != missing[0]).any(axis=0))[0]
        raise DocumentError(
            f"{where}.metrics: policy {policies[policy].key} has some metrics of case {case} but not all"
        )
    identical = np.zeros((len(cases), len(policies)), dtype=np.bool_)
    rows = take(document, where, "identical", list)
    _count(rows, len(cases), f"{where}.identical", "cases")
    for j, row in enumerate(rows):
        if not isinstance(row, list) or not all(type(column) is int and 0 <= column < len(policies) for column in row):
            raise DocumentError(f"{where}.identical[{j}] must list indices of policies")
        identical[j, row] = True
    relative = np.full(len(policies), np.nan)
    if "relative_latency" in document:
        relative = _numbers(document["relative_latency"], len(policies), f"{where}.relative_latency", "policies")
        if (relative <= 0).any():
            raise DocumentError(f"{where}.relative_latency[{int(np.argmax(relative <= 0))}] must be above 0")
    return Table(policies, cases, values, identical, relative)


def _shadows(document: dict[str, Any], cases: Sequence[Case], grid: Grid, dtypes: Sequence[str]) -> Shadows:
    only(document, "shadows", ("probes", "values"))
    layers: dict[str, SkipSelector] = {}
    probes: dict[Shadow, None] = {}
    for i, entry in enumerate(take(document, "shadows", "probes", list)):
        where = f"shadows.probes[{i}]"
        if not isinstance(entry, list) or [type(part) for part in entry] != [str, int, str]:
            raise DocumentError(f"{where} must be a list of dtype, step and layers, such as [{dtypes[0]!a}, 0, '0-2']")
        dtype, step, text = entry
        if dtype not in dtypes or not 0 <= step < grid.steps:
            raise DocumentError(
                f"{where} is of {ascii(dtype)[:20]} at step {step}; dtypes are {', '.join(dtypes)}, "
                f"steps 0 to {grid.steps - 1}"
            )
        selector = _selector(text, layers, "layer", grid.layers[-1] + 1, where)
        if not selector or not set(selector) <= set(grid.layers):
            raise DocumentError(f"{where}: layers {ascii(text)[:60]} must be some of those that can be quantized")
        probes[Shadow(step, selector.indices, dtype)] = None
    if len(probes) != len(document["probes"]):
        raise DocumentError("shadows.probes has one of them twice")
    rows = take(document, "shadows", "values", list)
    _count(rows, len(cases), "shadows.values", "cases")
    found: dict[Case, dict[Shadow, float]] = {}
    for j, case in enumerate(cases):
        values = _numbers(rows[j], len(probes), f"shadows.values[{j}]", "probes")
        if (values < 0).any():
            raise DocumentError(f"shadows.values[{j}][{int(np.argmax(values < 0))}] is below 0")
        found[case] = {shadow: value for shadow, value in zip(probes, values.tolist(), strict=True) if value == value}
    return found


def _count(rows: Any, wanted: int, where: str, what: str) -> None:
    if not isinstance(rows, list) or len(rows) != wanted:
        found = len(rows) if isinstance(rows, list) else "no list"
        raise DocumentError(f"{where} has {found} entries for {wanted} {what}")


def _numbers(row: Any, wanted: int, where: str, what: str) -> Numbers:
    """Finite numbers, one for each of the `wanted` of what there are, null as NaN."""
    _count(row, wanted, where, what)
    if odd := set(map(type, row)) - {int, float, type(None)}:
        raise DocumentError(f"{where} holds {odd.pop().__name__}; it must hold numbers and null")
    try:
        numbers = np.array([math.nan if value is None else value for value in row], dtype=np.float64)
    except OverflowError:
        raise DocumentError(f"{where} holds a number that is not finite") from None
    if np.isinf(numbers).any():
        raise DocumentError(f"{where}[{int(np.argmax(np.isinf(numbers)))}] is not finite")
    return numbers


def _cases(document: list[Any], workload: Workload) -> tuple[Case, ...]:
    known = set(workload.cases + workload.holdout_cases)
    cases: list[Case] = []
    for i, entry in enumerate(document):
        where = f"evaluations.cases[{i}]"
        if not isinstance(entry, dict):
            raise DocumentError(f"{where} must be an object")
        only(entry, where, ("prompt", "seed"))
        case = Case(take(entry, where, "prompt", str), take(entry, where, "seed", int))
        if case not in known or case in cases:
            raise DocumentError(
                f"{where} is {named(case)}, which is {'given twice' if case in cases else 'not in the workload'}"
            )
        cases.append(case)
    if not cases:
        raise DocumentError("evaluations.cases is empty")
    return tuple(cases)


def _policies(keys: list[Any], grid: Grid, dtypes: Sequence[str]) -> tuple[SkipPolicy, ...]:
    """The policies of canonical keys. Selectors repeat, so each is parsed once."""
    steps: dict[str, SkipSelector] = {}
    layers: dict[str, SkipSelector] = {}
    policies: list[SkipPolicy] = []
    for i, key in enumerate(keys):
        where = f"evaluations.policies[{i}]"
        if not isinstance(key, str):
            raise DocumentError(f"{where} must be text")
        if key == NATIVE:
            policies.append(SkipPolicy())
            continue
        dtype, _, rest = key.partition(":")
        first, slash, second = rest.partition("/")
        if dtype not in dtypes or not slash:
            raise DocumentError(
                f'{where} is {ascii(key)[:60]}; it must be "native" or DTYPE:STEPS/LAYERS of a recorded dtype'
            )
        policies.append(SkipPolicy(
            dtype,
            _skipped(first, steps, tuple(range(grid.steps)), "step", where),
            _skipped(second, layers, grid.layers, "layer", where),
        ))  # fmt: skip
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"evaluations.policies has {ascii(twice)[:60]} twice")
    return tuple(policies)


def _skipped(
    text: str, known: dict[str, SkipSelector], indices: tuple[int, ...], what: str, where: str
) -> SkipSelector:
    if text in known:  # of many policies, so it is checked once
        return known[text]
    selector = _selector(text, known, what, indices[-1] + 1, where)
    if set(indices) <= set(selector):
        raise DocumentError(f'{where} skips every {what}; that policy is written "native"')
    return selector


def _selector(text: str, known: dict[str, SkipSelector], what: str, bound: int, where: str) -> SkipSelector:
    """A selector in canonical form; `known` are those parsed before."""
    if text not in known:
        try:
            selector = SkipSelector.parse(text, bound, what)
        except SelectorError as error:
            raise DocumentError(f"{where}: {error}") from None
        if str(selector) != text:
            raise DocumentError(f"{where}: {what} selector {ascii(text)[:60]} is written {str(selector)!r}")
        known[text] = selector
    return known[text]
