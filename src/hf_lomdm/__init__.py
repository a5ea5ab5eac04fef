"""hf_lomdm: learnable-order masked diffusion language models with transformers and diffusers.

Public names are imported when first used, for torch and transformers take seconds. The Auto classes of transformers
know configuration and model all the same: what registers these is imported together with them.
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
# What is to be imported after which module. `AutoConfig` is imported in the middle of almost everything, the rest of
# the Auto classes in that of `modeling_layers`, which the model needs: it is registered when none is half imported.
_REGISTER = f"{__name__}.modeling.auto_classes"
_AFTER = {
    "transformers.models.auto.configuration_auto": f"{__name__}.modeling",
    "transformers.models.auto.modeling_auto": _REGISTER,
    "transformers.modeling_layers": _REGISTER,
    f"{__name__}.modeling.backbone_lomdm": _REGISTER,
    f"{__name__}.modeling.modeling_lomdm": _REGISTER,
}


class _AfterAutoClasses(importlib.abc.MetaPathFinder):
    """Imports what registers our classes after the modules above, whoever imports these; finds nothing itself."""

    def __init__(self):
        self.waiting: list[str] = []  # what is to be imported, once for each of its modules that is half imported

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in _AFTER else None
        if spec is None:
            return None
        execute, register = spec.loader.exec_module, _AFTER[name]

        def execute_and_register(module):
            self.waiting.append(register)
            try:
                execute(module)
            finally:
                self.waiting.remove(register)
            if register not in self.waiting:
                importlib.import_module(register)

        spec.loader.exec_module = execute_and_register
        return spec


sys.meta_path.insert(0, _AfterAutoClasses())
for _name, _register in _AFTER.items():
    if _name in sys.modules:
        importlib.import_module(_register)


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
