"""Subclasses of the model, the configuration, the scheduler and the pipeline; what may be written
over; adapters."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from conftest import TINY
from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMModel, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.hub import export_to_hub_folder
from hf_lomdm.pipelines.hub_folder_lomdm import check_target
from tiny_tokenizer import build_tokenizer
from training.tiny_training import make_trainer

SOURCE = """
from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
{imports}

class MyModel(LoMDMForMaskedDiffusion):
    def __init__(self, config):
        super().__init__(config)
        self.extra = __import__("torch").nn.Linear(3, 3)

class MyScheduler(LoMDMScheduler):
    pass

class MyPipeline(LoMDMPipeline):
    pass
"""


@pytest.fixture(
    params=["", "from .sub.helper import HELP", "from . import helper"],
    ids=["alone", "below", "beside"],
)
def mine(request, tmp_path, monkeypatch):
    """A user's module in a package of theirs."""
    package = tmp_path / "theirs"
    (package / "sub").mkdir(parents=True)
    for path in (package / "__init__.py", package / "helper.py", package / "sub" / "__init__.py"):
        path.write_text("")
    (package / "sub" / "helper.py").write_text("HELP = 1\n")
    (package / "mine.py").write_text(SOURCE.format(imports=request.param))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "theirs"]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("theirs.mine")


def code(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def test_a_subclass_is_saved_without_code_and_loads_by_itself(mine, tmp_path):
    torch.manual_seed(0)
    model = mine.MyModel(LoMDMConfig(**TINY)).eval()
    model.save_pretrained(tmp_path / "model")
    assert not code(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"] == {}
    reloaded = mine.MyModel.from_pretrained(tmp_path / "model")
    assert torch.equal(reloaded.extra.weight, model.extra.weight)
    with pytest.raises(ValueError, match="extra"):  # the parent does not take it for its own
        LoMDMForMaskedDiffusion.from_pretrained(tmp_path / "model")


def test_what_has_not_named_the_class_does_not_load_the_parent_of_a_subclass(make_model, tmp_path):
    class Quiet(LoMDMForMaskedDiffusion):
        """With the weights of its parent."""

    Quiet(LoMDMConfig(**TINY)).save_pretrained(tmp_path)
    for loader in (AutoModel, LoMDMPipeline):
        with pytest.raises(
            ValueError, match="was saved by Quiet, not LoMDMForMaskedDiffusion. Load it by Quiet"
        ):
            loader.from_pretrained(tmp_path)
    assert type(LoMDMForMaskedDiffusion.from_pretrained(tmp_path)) is LoMDMForMaskedDiffusion
    assert type(Quiet.from_pretrained(tmp_path)) is Quiet


def test_the_trainer_saves_checkpoints_of_a_subclass_and_ends(mine, tmp_path):
    rows = [{"input_ids": torch.arange(3, 9), "labels": torch.arange(3, 9)}] * 2
    options = {
        "max_steps": 2,
        "save_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = Trainer(
        mine.MyModel(LoMDMConfig(**TINY)),
        TrainingArguments(str(tmp_path / "run"), **options),
        train_dataset=rows,
    )
    trainer.train()
    assert mine.MyModel.from_pretrained(tmp_path / "run" / "checkpoint-2") is not None


def test_a_pipeline_of_subclasses_is_saved_and_loaded(mine, tmp_path):
    model = mine.MyModel(LoMDMConfig(**TINY)).eval()
    pipe = mine.MyPipeline(model, mine.MyScheduler(mask_token_id=10), build_tokenizer())
    folder = tmp_path / "hub"
    for _ in range(2):  # over itself too
        pipe.save_pretrained(folder)
    assert not code(folder)
    parts = {
        "model": mine.MyModel.from_pretrained(folder),
        "scheduler": mine.MyScheduler.from_pretrained(folder, subfolder="scheduler"),
    }
    reloaded = mine.MyPipeline.from_pretrained(folder, **parts)
    assert type(reloaded) is mine.MyPipeline and torch.equal(
        reloaded.model.extra.weight, model.extra.weight
    )
    with pytest.raises(
        ValueError, match=r"names \['mine', 'MyModel'\] as model.*pass its component \(model=\)"
    ):
        mine.MyPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"names \['mine', 'MyPipeline'\] as _class_name"):
        LoMDMPipeline.from_pretrained(folder, **parts)


def test_a_subclass_of_the_pipeline_loads_plain_folders_and_its_own(mine, make_model, tmp_path):
    LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10)).save_pretrained(
        tmp_path / "plain"
    )
    pipe = mine.MyPipeline.from_pretrained(tmp_path / "plain")
    pipe.save_pretrained(tmp_path / "own")
    assert "pipeline_lomdm.py" not in code(tmp_path / "own") and "modeling_lomdm.py" in code(
        tmp_path / "own"
    )
    assert type(mine.MyPipeline.from_pretrained(tmp_path / "own")) is mine.MyPipeline


def test_code_of_a_subclass_travels_when_it_is_registered_or_the_reason_is_named(mine, tmp_path):
    mine.MyModel.register_for_auto_class("AutoModel")
    model = mine.MyModel(LoMDMConfig(**TINY))
    if "from ." in Path(mine.__file__).read_text():
        with pytest.raises(
            ValueError, match="MyModel cannot take its code along: .*mine.py imports"
        ):
            model.save_pretrained(tmp_path / "model")
        assert not (tmp_path / "model").exists()
        return
    model.save_pretrained(tmp_path / "model")
    assert code(tmp_path / "model") == {"mine.py"}
    names = json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]
    assert names == {"AutoModel": "mine.MyModel", "AutoModelForMaskedLM": "mine.MyModel"}


def test_our_own_model_takes_its_code_along_and_the_backbone_alone_none(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    assert "modeling_lomdm.py" in code(tmp_path / "model")
    names = json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]
    assert names["AutoConfig"] == "configuration_lomdm.LoMDMConfig" and len(names) == 3
    LoMDMModel.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "backbone")
    assert not code(tmp_path / "backbone")
    assert json.loads((tmp_path / "backbone" / "config.json").read_text())["auto_map"] == {}


def test_a_subclass_of_the_configuration_is_saved_and_loaded(tmp_path):
    class MyConfig(LoMDMConfig):
        model_type = "mine-of-lomdm"

    class MyModel(LoMDMForMaskedDiffusion):
        config_class = MyConfig

    AutoConfig.register("mine-of-lomdm", MyConfig)
    MyModel(MyConfig(**TINY, colour="red")).save_pretrained(tmp_path)
    assert MyModel.from_pretrained(tmp_path).config.colour == "red" and not code(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MyConfig


# ------------------------------------------------------------------------- what may be written over


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def bert(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for i in (1, 2):
        (folder / f"model-0000{i}-of-00002.safetensors").write_bytes(b"weights")


def weights_of_no_kind(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")


def broken(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{")


def foreign_pipeline(folder: Path) -> None:
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": ["pipeline_other", "Other"]}')


@pytest.mark.parametrize("kind", [bert, weights_of_no_kind, broken, foreign_pipeline])
def test_a_folder_of_another_model_is_left_as_it_is(make_model, tmp_path, kind):
    folder, before = tmp_path / "taken", None
    kind(folder)
    before = content(folder)
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10))
    for write in (pipe.save_pretrained, lambda target: export_to_hub_folder(pipe.model, target)):
        with pytest.raises(ValueError, match="holds .*Pass another folder") as error:
            write(folder)
        assert "\n" not in str(error.value) and content(folder) == before


def test_training_does_not_begin_where_its_model_could_not_be_saved(tmp_path, monkeypatch):
    bert(tmp_path / "run")
    (tmp_path / "tuned").mkdir()
    bert(tmp_path / "tuned" / "merged")
    before = content(tmp_path)
    trainer = make_trainer(tmp_path / "run", max_steps=1)
    with pytest.raises(ValueError, match="holds a model of the kind 'bert', not 'lomdm'"):
        trainer.train()
    script = importlib.import_module("hf_lomdm.cli.finetune")
    words = [
        "--model",
        "absent",
        "--train_file",
        "absent",
        "--output_dir",
        str(tmp_path / "tuned"),
        "--use_cpu",
    ]
    with pytest.raises(
        (ValueError, SystemExit), match="holds a model of the kind 'bert', not 'lomdm'"
    ):
        script.main(words)
    assert content(tmp_path) == before


def test_a_folder_of_the_same_kind_and_one_without_a_model_may_be_written(make_model, tmp_path):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10))
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        pipe.save_pretrained(tmp_path)
    check_target(tmp_path, "lomdm")
    with pytest.raises(ValueError, match="holds a model of the kind 'lomdm', not 'gpt_neox'"):
        check_target(tmp_path, "gpt_neox")
    assert (tmp_path / "notes.txt").exists()


def test_what_a_killed_save_has_left_goes_with_the_next(make_model, tmp_path):
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10))
    for target in (tmp_path / "there", tmp_path / "new"):
        (tmp_path / "there").mkdir(exist_ok=True)
        left = [tmp_path / "there" / f"_{'0a' * 16}", tmp_path / f".new_{'0b' * 16}"]
        other = [tmp_path / "there" / "_mine", tmp_path / f".other_{'0c' * 16}"]
        for folder in (*left, *other):
            folder.mkdir(exist_ok=True)
        pipe.save_pretrained(target)
        assert all(folder.exists() for folder in other) and not left[target.name == "new"].exists()


def test_a_pipeline_whose_model_carries_an_adapter_is_refused_and_nothing_is_written(
    make_model, tmp_path
):
    peft = pytest.importorskip("peft")
    pipe = LoMDMPipeline(make_model(), LoMDMScheduler(mask_token_id=10))
    pipe.model.add_adapter(peft.LoraConfig(target_modules=["qkv_proj"]))
    with pytest.raises(
        ValueError, match=r"model carries the adapters \['default'\].*get_peft_model"
    ):
        pipe.save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())


MAIN = """
import sys
from hf_lomdm import LoMDMConfig, LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler

class Mine(LoMDMForMaskedDiffusion):
    pass

sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
model = Mine(LoMDMConfig(vocab_size=11, mask_token_id=10, **sizes))
LoMDMPipeline(model, LoMDMScheduler(mask_token_id=10)).save_pretrained(sys.argv[1])
Mine.from_pretrained(sys.argv[1])
"""


@pytest.mark.slow
def test_a_subclass_of_a_notebook_is_saved(tmp_path):
    subprocess.run([sys.executable, "-c", MAIN, tmp_path / "out"], check=True, capture_output=True)
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["model"] == [
        "__main__",
        "Mine",
    ]
