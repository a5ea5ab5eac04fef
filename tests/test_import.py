"""`import hf_lomdm` makes the Auto classes know the model; diffusers comes when it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

import hf_lomdm

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "lomdm-enwiki"
LOAD = (
    f"print(type(transformers.AutoModelForMaskedLM.from_pretrained({str(SHIPPED)!r})).__module__)"
)
LOAD_CONFIG = f"print(type(AutoConfig.from_pretrained({str(SHIPPED)!r})).__module__)"


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def found() -> list[str]:
    """What one interpreter that imports the package first finds, step by step."""
    heavy = ("diffusers", "datasets", "evaluate", "matplotlib")
    steps = (
        f"import sys, hf_lomdm; print([name for name in {heavy} if name in sys.modules])",
        "print(hf_lomdm.LoMDMForMaskedDiffusion._auto_class)",
        # a model brings the Auto classes while what our model needs is half imported
        "from transformers import BertModel",
        f"from transformers import AutoConfig; {LOAD_CONFIG}",
        f"import transformers; {LOAD}",
    )
    return run("\n".join(steps)).splitlines()


def test_the_import_brings_no_library_that_the_model_does_not_need(found):
    assert found[0] == "[]"


def test_saved_models_take_their_code_along_where_no_auto_class_was_imported(found):
    assert found[1] == "AutoModel"


def test_auto_classes_know_the_model_and_its_configuration_without_remote_code(found):
    assert found[2] == "hf_lomdm.modeling.configuration_lomdm"
    assert found[3] == "hf_lomdm.modeling.modeling_lomdm"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import hf_lomdm, transformers",
        "import hf_lomdm; from diffusers import DiffusionPipeline; import transformers",
        "import hf_lomdm; from transformers import BertModel; import transformers",
        "from transformers import AutoModel; import hf_lomdm, transformers",
        "import hf_lomdm; from transformers import PreTrainedModel, Trainer; import transformers",
        "from hf_lomdm import LoMDMScheduler; import transformers",
        "from hf_lomdm.modeling.backbone_lomdm import LoMDMLayer; import transformers",
    ],
)
def test_auto_classes_know_the_model_in_any_order_of_imports_without_remote_code(imports):
    assert run(f"{imports}; {LOAD}") == "hf_lomdm.modeling.modeling_lomdm"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports", ["import hf_lomdm", "from transformers import AutoConfig; import hf_lomdm"]
)
def test_auto_config_alone_knows_the_configuration_without_remote_code(imports):
    code = f"{imports}; from transformers import AutoConfig; {LOAD_CONFIG}"
    assert run(code) == "hf_lomdm.modeling.configuration_lomdm"


def test_every_public_name_is_there_and_another_is_an_attribute_error():
    assert all(getattr(hf_lomdm, name).__name__ == name for name in hf_lomdm.__all__)
    assert set(hf_lomdm.__all__) <= set(dir(hf_lomdm))
    with pytest.raises(AttributeError, match="LoMDM2"):
        hf_lomdm.LoMDM2  # noqa: B018


def test_a_dependency_that_breaks_at_its_import_is_named(monkeypatch):
    def break_down(name):
        raise AttributeError("module 'torch' has no attribute 'new'")

    monkeypatch.setattr(hf_lomdm.importlib, "import_module", break_down)
    with pytest.raises(
        ImportError, match="LoMDMPipeline cannot be imported: module 'torch' has no attribute 'new'"
    ):
        from hf_lomdm import LoMDMPipeline  # noqa: F401
