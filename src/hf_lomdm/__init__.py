"""hf_lomdm: learnable-order masked diffusion language models with transformers and diffusers.

Public names are imported when first used, for torch and transformers take seconds. The Auto classes of transformers
know the model all the same: `hf_lomdm.modeling` registers it, and is imported together with them.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys

__version__ = "0.1.0"

_MODULES = {
    "LoMDMConfig": "modeling",
    "LoMDMForMaskedDiffusion": "modeling",
    "LoMDMModel": "modeling",
    "LoMDMScheduler": "schedulers.scheduling_lomdm",
    "LoMDMPipeline": "pipelines.pipeline_lomdm",
    "OrderAdapter": "adapters.order_adapter",
}
__all__ = list(_MODULES)
_AUTO_CLASSES = "transformers.models.auto.modeling_auto"


class _ModelAfterAutoClasses(importlib.abc.MetaPathFinder):
    """Imports `hf_lomdm.modeling` right after the Auto classes, whoever imports those; finds nothing itself."""

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == _AUTO_CLASSES else None
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            importlib.import_module(f"{__name__}.modeling")

        spec.loader.exec_module = execute_and_register
        return spec


if _AUTO_CLASSES in sys.modules:
    importlib.import_module(f"{__name__}.modeling")
else:
    sys.meta_path.insert(0, _ModelAfterAutoClasses())


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except AttributeError as error:  # which `from hf_lomdm import name` would take for a name that is missing
        raise ImportError(f"{name} cannot be imported: {error}") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
