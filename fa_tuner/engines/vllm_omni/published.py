"""Which indices a pipeline publishes to the skip selectors, read from its source.

Looked at is what the pipeline's class refers to, directly or through other definitions of vLLM-Omni's models: calls
that publish the denoising step, and the attention modules with the prefix that carries their block's index.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from fa_tuner.engines.vllm_omni.source import PACKAGE, OmniSource

_MODELS = f"{PACKAGE}.diffusion.models."
_ATTENTION = f"{PACKAGE}.diffusion.attention"
_PUBLISHES_STEP = {"record_denoise_step", "set_forward_context_denoise_step_idx"}


@dataclass(frozen=True)
class AttentionCall:
    """A place that makes a module of vLLM-Omni's `Attention`."""

    owner: str
    place: str
    has_prefix: bool
    opts_out: bool


@dataclass(frozen=True)
class Published:
    """`steps` are the places that publish the step; `blocks` the names that block indices follow, such as "blocks"."""

    steps: tuple[str, ...]
    attention: tuple[AttentionCall, ...]
    blocks: tuple[str, ...]

    @property
    def eligible(self) -> tuple[AttentionCall, ...]:
        return tuple(call for call in self.attention if not call.opts_out)

    @property
    def without_layer(self) -> tuple[AttentionCall, ...]:
        """Eligible for quantization, and out of reach of skip_layers."""
        return tuple(call for call in self.eligible if not call.has_prefix)


def published(source: OmniSource, module: str, name: str) -> Published:
    """What the pipeline class `name` of `module` (named without `vllm_omni.` in front) publishes."""
    steps: list[str] = []
    attention: list[AttentionCall] = []
    blocks: set[str] = set()
    for code, owner, definition in _reached(source, f"{PACKAGE}.{module}", name):
        for node in ast.walk(definition):
            if not isinstance(node, ast.Call):
                continue
            called = _called(node.func)
            place = f"{source.file(code.name).relative_to(source.folder)}:{node.lineno}"
            if called in _PUBLISHES_STEP and node.args and not _is(node.args[0], None):
                steps.append(place)
            if _is_attention(code.imports.get(called)):
                attention.append(_attention_call(node, owner, place))
            blocks |= {index for keyword in node.keywords if (index := _block_index(keyword, called))}
    return Published(tuple(steps), tuple(sorted(attention, key=lambda x: x.place)), tuple(sorted(blocks)))


class _Code:
    """One module: what it defines and what its names were imported from."""

    def __init__(self, name: str, tree: ast.Module, is_package: bool) -> None:
        self.name = name.removeprefix(f"{PACKAGE}.")
        self.definitions: dict[str, ast.stmt] = {}
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign):
                self.definitions |= {x.id: node for x in node.targets if isinstance(x, ast.Name)}
        self.imports: dict[str, tuple[str, str]] = {}
        for found in ast.walk(tree):
            if isinstance(found, ast.ImportFrom):
                origin = _absolute(found, name, is_package)
                self.imports |= {alias.asname or alias.name: (origin, alias.name) for alias in found.names}


def _reached(source: OmniSource, module: str, name: str) -> Iterator[tuple[_Code, str, ast.stmt]]:
    """Every definition among vLLM-Omni's models that this one refers to, itself first."""
    loaded: dict[str, _Code | None] = {}
    seen: set[tuple[str, str]] = set()
    ahead = [(module, name)]
    while ahead:
        here = ahead.pop()
        if here in seen or not here[0].startswith(_MODELS):
            continue
        seen.add(here)
        module, name = here
        if module not in loaded:
            short = module.removeprefix(f"{PACKAGE}.")
            tree = source.tree(short)
            loaded[module] = None if tree is None else _Code(module, tree, source.file(short).name == "__init__.py")
        code = loaded[module]
        if code is None:
            continue
        if name in code.definitions:
            definition = code.definitions[name]
            yield code, name, definition
            names = [x.id for x in ast.walk(definition) if isinstance(x, ast.Name)]
            ahead += [code.imports.get(x, (module, x)) for x in names if x in code.imports or x in code.definitions]
        elif name in code.imports:
            ahead.append(code.imports[name])


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    above = parts[: len(parts) - node.level + is_package]
    return ".".join([*above, *([node.module] if node.module else [])])


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _is_attention(origin: tuple[str, str] | None) -> bool:
    return origin is not None and origin[0].startswith(_ATTENTION) and origin[1] == "Attention"


def _attention_call(node: ast.Call, owner: str, place: str) -> AttentionCall:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    return AttentionCall(
        owner,
        place,
        # what comes through **arguments cannot be seen, and is taken to hold it
        has_prefix=None in given or ("prefix" in given and not _is(given["prefix"], "")),
        opts_out="disable_kv_quant" in given and _is(given["disable_kv_quant"], True),
    )


def _block_index(keyword: ast.keyword, called: str) -> str | None:
    """ "blocks" of `prefix=f"blocks.{i}"`, or of `make_layers(..., prefix="blocks")`."""
    if keyword.arg != "prefix":
        return None
    match keyword.value:
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), ast.FormattedValue()]) if text.endswith("."):
            return text[:-1]
        case ast.Constant(value=str(text)) if called == "make_layers" and text:
            return text
    return None


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value
