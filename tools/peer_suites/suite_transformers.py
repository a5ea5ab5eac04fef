"""transformers' `ModelTesterMixin` and `ConfigTester` on every system of the family."""

import importlib
import sys
import types
import unittest
from unittest.mock import patch

import torch
from systems import SIZES, SYSTEMS, make_config

from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMModel


def stand_in(name: str, **members) -> None:
    """Stands in for a module that the distribution leaves out; a checkout has it."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module = types.ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module


stand_in("tests.exporters")
stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
stand_in("tests.generation")
stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
stand_in("tests.utils")
stand_in(
    "tests.utils.test_configuration_utils",
    config_common_kwargs={
        "return_dict": False,
        "output_hidden_states": True,
        "dtype": "float16",
        "architectures": ["A"],
    },
)

from tests import test_modeling_common as common  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402

names_of = common.get_values
# a backbone without a loss, as the suite knows of those that transformers has itself
BARE = {"LoMDMModel"}
common.get_values = lambda names: [
    *names_of(names),
    *(BARE if names is common.MODEL_MAPPING_NAMES else ()),
]


class ModelTester:
    """What the mixin asks of a model: a configuration and a batch of texts."""

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, num_attention_heads = (
        SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )

    def __init__(self, system: dict):
        self.system = system

    def get_config(self) -> LoMDMConfig:
        return make_config(**self.system)

    def prepare_config_and_inputs_for_common(self) -> tuple[LoMDMConfig, dict]:
        ids = torch.randint(4, SIZES["vocab_size"], (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Suite(common.ModelTesterMixin):
    all_model_classes = (LoMDMModel, LoMDMForMaskedDiffusion)
    has_attentions = False  # weights of attention are not kept
    system: dict = {}
    labels = True

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = ModelTester(self.system)
        self.config_tester = ConfigTester(self, LoMDMConfig, **{**SIZES, **self.system})

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and self.labels and model_class is LoMDMForMaskedDiffusion:
            inputs["labels"] = inputs["input_ids"]
        return inputs

    def test_batching_equivalence(self, *args, **kwargs):
        # the mask token's are -inf, for the suite a fault
        logits = LoMDMForMaskedDiffusion.token_logits
        finite = patch.object(
            LoMDMForMaskedDiffusion,
            "token_logits",
            lambda *inputs: logits(*inputs).nan_to_num(neginf=0.0),
        )
        with finite:
            super().test_batching_equivalence(*args, **kwargs)

    def test_model_outputs_equivalence(self):
        # a loss is drawn, and its hidden states are those of draws: the suite asks for both
        self.labels = False
        super().test_model_outputs_equivalence()

    def test_config(self):
        self.config_tester.run_common_tests()


for _name, _system in SYSTEMS.items():
    globals()[_name] = type(
        _name, (Suite, unittest.TestCase), {"system": _system, "__module__": __name__}
    )
