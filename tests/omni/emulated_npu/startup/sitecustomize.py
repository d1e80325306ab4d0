"""Put this folder on PYTHONPATH to import vllm beside a CPU build of torch.

PyPI's torchvision is built for CUDA. Beside a CPU torch its operators are missing and `import torchvision` fails, and
vllm imports it through transformers before any platform is asked. The schemas of two operators are enough for the
import; where torchvision's own library does load, declaring them again would abort the process.
"""

import importlib.abc
import importlib.machinery
import os
import sys


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return


if os.environ.get("FA_TUNE_EMULATE_NPU") == "1":
    sys.meta_path.insert(0, _BeforeTorchvision())
