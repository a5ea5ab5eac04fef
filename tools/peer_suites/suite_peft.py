"""peft's tests of feature extraction models, on a LoMDM with every adapter that they know."""

import atexit
import tempfile
from pathlib import Path

import torch
from peft import BeftConfig, LoraConfig, PromptLearningConfig
from systems import SIZES, make_config
from tests import test_feature_extraction_models as suite
from tests.test_feature_extraction_models import TestPeftFeatureExtractionModel

from hf_lomdm import LoMDMForMaskedDiffusion

# of the backbone alone: the heads have layers, too, and no share in the logits
MATRICES = [
    f"layers.{layer}.attention.{name}" for layer in (0, 1) for name in ("qkv_proj", "o_proj")
]
BIASED = [f"layers.{layer}.mlp.up_proj" for layer in (0, 1)]
FOLDER = tempfile.TemporaryDirectory()
atexit.register(FOLDER.cleanup)


def save_model() -> str:
    """A folder with a tiny model, in the place of a name on the Hub."""
    torch.manual_seed(0)
    folder = str(Path(FOLDER.name) / "lomdm")
    LoMDMForMaskedDiffusion(make_config(initializer_range=0.2)).save_pretrained(folder)
    return folder


suite.PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST[:] = [save_model()]
for _config, _settings in suite.ALL_CONFIGS:
    if not issubclass(_config, PromptLearningConfig) and _settings.get("target_modules") is None:
        _settings["target_modules"] = BIASED if issubclass(_config, BeftConfig) else MATRICES
    if "feedforward_modules" in _settings:
        _settings["feedforward_modules"] = []


class TestLoMDM(TestPeftFeatureExtractionModel):
    """On the model with its heads, which is what `AutoModel` gives, too."""

    transformers_class = LoMDMForMaskedDiffusion

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        return {
            "input_ids": torch.tensor([[5, 6, SIZES["mask_token_id"]], [7, 8, 9]]),
            "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        }

    def test_load_model_low_cpu_mem_usage(self):
        (model,) = suite.PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST
        self._test_load_model_low_cpu_mem_usage(model, LoraConfig, {"target_modules": MATRICES})


del TestPeftFeatureExtractionModel
