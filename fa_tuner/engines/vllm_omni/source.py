"""Reads the source of the installed vLLM-Omni and of what its quantized attention calls.

Importing vLLM-Omni takes many seconds, prints, and asks for a device; MindIE-SD runs native code. Their source says
the same, and what it does not say is unknown.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from fa_tuner.domain.policy import DTYPES
from fa_tuner.engines.vllm_omni.machine import Installed

PACKAGE = "vllm_omni"
_BACKENDS = "diffusion.attention.backends.registry"
_REGISTRY = "diffusion.registry"
_QUANTIZER = "platforms.npu.quant.kv_quant_npu"
# always there, or looked at elsewhere
_NO_NEED = sys.stdlib_module_names | {PACKAGE, "torch", "torch_npu", "numpy", "vllm"}


def parse(file: Path) -> ast.Module | None:
    """None where there is no such file or it is no Python that this interpreter reads."""
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def provides(installed: Installed, module: str, name: str) -> bool | None:
    """Whether `from module import name` finds it; None where that cannot be told from Python source."""
    top, *rest = module.split(".")
    folder = installed.package(top)
    if folder is None:
        return False
    base = folder.joinpath(*rest)
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not file.is_file():
        compiled = any(file.parent.glob(f"{file.stem}.*so")) or any(file.parent.glob(f"{file.stem}.*pyd"))
        return None if compiled else False
    tree = parse(file)
    if tree is None:
        return None
    names = set(_names(tree.body))
    return True if name in names else None if names & {"*", "__getattr__"} else False


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """What the statements of a module define, those under `if` and `try` too."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from _names(node.body + node.orelse)
            for handler in getattr(node, "handlers", []):
                yield from _names(handler.body)


class OmniSource:
    """vLLM-Omni's package folder. An answer None means that the source has another shape than those known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trees: dict[str, ast.Module | None] = {}

    def file(self, module: str) -> Path:
        """Of a module named without `vllm_omni.` in front."""
        base = self.folder.joinpath(*module.split("."))
        return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")

    def tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            self._trees[module] = parse(self.file(module))
        return self._trees[module]

    def backends(self) -> dict[str, str]:
        """Attention backends by name, with the module that each lives in."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree(_BACKENDS) or ast.Module([], [])):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(path))):
                    if path.startswith(f"{PACKAGE}."):
                        found[name] = path.removeprefix(f"{PACKAGE}.").rpartition(".")[0]
        return found

    def dtypes(self, backend: str) -> tuple[str, ...] | None:
        """What a backend declares for an NPU; empty where it declares nothing."""
        tree = self._backend(backend)
        if tree is None:
            return None
        declared = _assigned(tree, "_supported_kv_cache_dtypes")
        if declared is None:
            return ()
        table = _literal(declared)
        if not isinstance(table, dict) or not isinstance(found := table.get("npu", set()), set | list | tuple):
            return None
        return tuple(sorted(map(str, found), key=lambda name: (*DTYPES, name).index(name)))

    def head_sizes(self, backend: str) -> tuple[int, ...] | None:
        """The sizes that a backend lists; it need not enforce them."""
        for node in ast.walk(self._backend(backend) or ast.Module([], [])):
            if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes":
                sizes = [_literal(x.value) for x in node.body if isinstance(x, ast.Return) and x.value is not None]
                if len(sizes) == 1 and isinstance(sizes[0], list):
                    return tuple(sizes[0])
        return None

    def has_method(self, backend: str, name: str) -> bool:
        tree = self._backend(backend)
        return tree is not None and any(isinstance(x, ast.FunctionDef) and x.name == name for x in ast.walk(tree))

    def quantizer_needs(self) -> tuple[tuple[str, str], ...]:
        """(module, name) of what the quantized attention of FLASH_ATTN imports from elsewhere on an NPU."""
        quantizing: list[ast.AST] = [self.tree(_QUANTIZER) or ast.Module([], [])]
        for node in ast.walk(self._backend("FLASH_ATTN") or ast.Module([], [])):
            if isinstance(node, ast.FunctionDef) and "quant" in node.name:
                quantizing.append(node)
        needs = {
            (found.module, alias.name): None  # a dict keeps the order
            for part in quantizing
            for found in ast.walk(part)
            if isinstance(found, ast.ImportFrom) and found.module and not found.level
            for alias in found.names
            if found.module.partition(".")[0] not in _NO_NEED
        }
        return tuple(needs)

    def pipelines(self) -> dict[str, tuple[str, str]] | None:
        """By the class name in model_index.json: the module that vLLM-Omni's own class lives in, and its name."""
        tree = self.tree(_REGISTRY)
        table = None if tree is None else _assigned(tree, "_DIFFUSION_MODELS")
        found = None if table is None else _literal(table)
        if not isinstance(found, dict) or not all(isinstance(x, tuple) and len(x) == 3 for x in found.values()):
            return None
        return {name: (f"diffusion.models.{x[0]}.{x[1]}", x[2]) for name, x in found.items()}

    def mentions(self, module: str, text: str) -> bool:
        """Whether a module holds `text` as a whole string, such as the name of an environment variable."""
        tree = self.tree(module)
        return tree is not None and any(isinstance(x, ast.Constant) and x.value == text for x in ast.walk(tree))

    def _backend(self, name: str) -> ast.Module | None:
        module = self.backends().get(name)
        return None if module is None else self.tree(module)


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """The value of the first assignment to `name`, at the module's level or in a class."""
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(x, ast.Name) and x.id == name for x in targets):
            return node.value  # type: ignore[attr-defined, no-any-return]
    return None


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
