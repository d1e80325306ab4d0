"""A package `vllm_omni` of a few lines: what fa-tune's loader calls of 0.30, and what can go wrong on the way.

It reads an NPU entry of a deploy file, or flags, and knows nothing else; what vLLM-Omni really does is tested in
tests/omni.
"""

from __future__ import annotations

from pathlib import Path

_FILES = {
    "__init__.py": "print('INFO: noise on stdout')\n{start}\n__version__ = '{version}'\n",
    "platforms.py": "class Cpu:\n    device_name = 'cpu'\n\n\ncurrent_omni_platform = Cpu()\n",
    "config/__init__.py": "",
    "config/resolver.py": """
import types

import yaml


def indices(text):
    found = set()
    for item in filter(None, (text or '').split(',')):
        first, _, last = item.partition('-')
        found |= set(range(int(first), int(last or first) + 1))
    return found


def resolve_omni_config(model, *, trust_remote_code, deploy_config_path, cli_overrides, stage_overrides,
                        strategy_config_path):
    from vllm_omni.platforms import current_omni_platform

    if model.endswith('unknown'):
        raise ValueError(f'Model {model!r} is not known')
    said = dict(cli_overrides)
    if deploy_config_path is not None:
        with open(deploy_config_path) as file:
            read = yaml.safe_load(file)
        for stage in read.get('platforms', {}).get(current_omni_platform.device_name, {}).get('stages', ()):
            said |= stage
        if any('stpes' in key for key in said):
            raise ValueError('Unknown diffusion config field(s)\\nfor stage 0')
    config = types.SimpleNamespace(diffusion_kv_cache_dtype=said.get('diffusion_kv_cache_dtype'))
    for what in ('step', 'layer'):
        setattr(config, f'diffusion_kv_cache_skip_{what}_indices',
                indices(said.get(f'diffusion_kv_cache_skip_{what}s')) or None)
    stage = types.SimpleNamespace(stage_id=0, stage_type='diffusion', diffusion_config=config)
    return types.SimpleNamespace(stage_configs=[stage])
""",
    "entrypoints/__init__.py": "",
    "entrypoints/utils.py": """
import types


def prepare_stage_config_inputs(model, kwargs, *, trust_remote_code):
    kwargs = dict(kwargs)
    return types.SimpleNamespace(
        model=model, deploy_config_path=kwargs.pop('deploy_config', None), kwargs=kwargs, stage_overrides=None,
        strategy_config_path=None,
    )
""",
    "entrypoints/cli/__init__.py": "",
    "entrypoints/cli/serve.py": """
class OmniServeCommand:
    def subparser_init(self, subparsers):
        parser = subparsers.add_parser('serve')
        parser.add_argument('model_tag')
        parser.add_argument('--omni', action='store_true')
        for name in ('dtype', 'skip-steps', 'skip-layers'):
            parser.add_argument(f'--diffusion-kv-cache-{name}')
""",
    "utils/__init__.py": "",
    "utils/tracking_parser.py": """
import argparse


class TrackingArgumentParser(argparse.ArgumentParser):
    def parse_args(self, args):
        found = super().parse_args(args)
        found.get_explicit_kwargs_dict = lambda: {k: v for k, v in vars(found).items() if isinstance(v, str | bool)}
        return found
""",
}


def install(folder: Path, start: str = "", version: str = "0.30.0") -> Path:
    """Write the package into `folder`; `start` is what its import does. Put the folder on the path to use it."""
    for name, content in _FILES.items():
        file = folder / "vllm_omni" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content.format(start=start, version=version) if name == "__init__.py" else content)
    metadata = folder / f"vllm_omni-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm-omni\nVersion: {version}\n")
    return folder
