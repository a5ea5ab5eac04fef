"""What `LoMDMPipeline.save_pretrained` writes, what it leaves alone, and what `from_pretrained`
makes of it."""

import errno
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, RepoUrl
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from hf_lomdm import LoMDMForMaskedDiffusion, LoMDMPipeline, LoMDMScheduler
from hf_lomdm.pipelines import loading
from tiny_tokenizer import build_tokenizer


def named(*names: str) -> set[str]:
    return {f"{name}_lomdm.py" for name in names}


CODE = named(
    "adapted",
    "loss",
    "attention",
    "backbone",
    "backbone_hub",
    "batch",
    "blocks",
    "checkpoint",
    "configuration",
)
CODE |= named(
    "context", "fields", "modeling", "pretrained", "process", "random", "rates", "token_losses"
)
SCHEDULER_CODE = named(
    "blocks", "corrections", "forward", "input_checks", "position_draw", "process", "random"
)
SCHEDULER_CODE |= named("scheduling", "settings", "token_draw")
PIPELINE_CODE = named("canvas", "filling", "guidance", "hub_folder", "pipeline", "prompts")
PIPELINE_CODE |= named("streaming")
LAYOUT = {
    *("README.md", "config.json", "model.safetensors", "model_index.json", *PIPELINE_CODE, *CODE),
    *("tokenizer.json", "tokenizer_config.json"),
    *(
        "model/config.json",
        "model/model.safetensors.index.json",
        *(f"model/{name}" for name in CODE),
    ),
    "scheduler/scheduler_config.json",
    *(f"scheduler/{name}" for name in SCHEDULER_CODE),
}


@pytest.fixture
def pipe(make_model):
    pipe = LoMDMPipeline(
        make_model(), LoMDMScheduler(mask_token_id=10, sampler="ancestral"), build_tokenizer()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def write(pipe: LoMDMPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe([[3, 4]], 4, max_length=16, generator=torch.Generator().manual_seed(1)).sequences


def test_saved_folder_has_the_layout_and_one_copy_of_the_weights(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert files(folder) == LAYOUT
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_lomdm", "LoMDMPipeline"]
    assert index["model"] == ["modeling_lomdm", "LoMDMForMaskedDiffusion"]
    assert (
        index["scheduler"] == ["scheduling_lomdm", "LoMDMScheduler"]
        and index["tokenizer"][0] == "transformers"
    )
    weight_map = json.loads((folder / "model/model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    assert set(weight_map) == set(load_file(folder / "model.safetensors")) and set(
        weight_map.values()
    ) == {"../model.safetensors"}
    assert (
        (folder / "README.md")
        .read_text()
        .startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask")
    )
    assert list(folder.parent.iterdir()) == [folder]  # the temporary folder is gone


def test_code_in_the_folder_names_neither_the_package_nor_what_it_cannot_reach(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "out")
    for folder in {path.parent for path in (tmp_path / "out").rglob("*.py")}:
        siblings = {}
        for path in folder.glob("*.py"):
            lines = [line.strip() for line in path.read_text().splitlines()]
            imports = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
            assert not [name for name in imports if "hf_lomdm" in name]
            siblings[path.name] = {f"{name[1:]}.py" for name in imports if name.startswith(".")}
            assert siblings[path.name] <= CODE | SCHEDULER_CODE | PIPELINE_CODE
        # diffusers copies imports of a component's file one level deep: what the others need, that
        # file imports too
        of_components = set().union(
            *(found for name, found in siblings.items() if name not in PIPELINE_CODE)
        )
        component = "scheduling_lomdm.py" if folder.name == "scheduler" else "modeling_lomdm.py"
        assert of_components <= siblings[component]
        of_pipeline = set().union(
            *(found for name, found in siblings.items() if name in PIPELINE_CODE)
        )
        assert of_pipeline <= siblings.get("pipeline_lomdm.py", set())


@pytest.mark.parametrize("max_shard_size", [None, "10KB"])
def test_folder_loads_as_pipeline_and_as_model_without_remote_code(pipe, tmp_path, max_shard_size):
    folder = tmp_path / "out"
    pipe.save_pretrained(folder, max_shard_size=max_shard_size)
    shards = list(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1 if max_shard_size else not shards
    reloaded = LoMDMPipeline.from_pretrained(folder)
    assert (
        type(reloaded.model) is LoMDMForMaskedDiffusion
        and type(reloaded.scheduler) is LoMDMScheduler
    )
    assert (
        dict(reloaded.scheduler.config)["sampler"] == "ancestral"
        and reloaded.tokenizer.mask_token_id == 10
    )
    assert torch.equal(write(reloaded), write(pipe))
    for source, auto in (
        (folder, AutoModel),
        (folder, AutoModelForMaskedLM),
        (folder / "model", AutoModel),
    ):
        model = auto.from_pretrained(source)
        assert all(
            torch.equal(value, model.state_dict()[name])
            for name, value in pipe.model.state_dict().items()
        )
    assert AutoTokenizer.from_pretrained(folder)("ab<mask>")["input_ids"] == [3, 4, 10]


def test_a_second_save_replaces_the_weights_and_leaves_foreign_files_and_the_card(
    pipe, make_model, tmp_path
):
    pipe.save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events").write_text("mine too")
    (tmp_path / "README.md").write_text("my card")
    other = LoMDMPipeline(make_model(seed=1), pipe.scheduler, pipe.tokenizer)
    other.save_pretrained(tmp_path)
    assert files(tmp_path) == LAYOUT | {"notes.txt", "runs/events"}
    assert (tmp_path / "README.md").read_text() == "my card"
    assert torch.equal(write(LoMDMPipeline.from_pretrained(tmp_path)), write(other))
    assert not torch.equal(write(other), write(pipe))


def test_saving_survives_loading_and_saving_again(pipe, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    pipe.save_pretrained(first)
    LoMDMPipeline.from_pretrained(first).save_pretrained(second)
    assert files(first) == files(second)
    for name in files(first):
        if not name.endswith(("README.md", "config.json")):
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_shards_keep_their_tensors_and_from_the_second_save_on_their_bytes(pipe, tmp_path):
    """transformers sorts the weights of a model that was loaded, so the first save may cut them
    elsewhere."""
    folders = [tmp_path / name for name in ("first", "second", "third")]
    pipe.save_pretrained(folders[0], max_shard_size="10KB")
    for before, after in zip(folders, folders[1:], strict=False):
        LoMDMPipeline.from_pretrained(before).save_pretrained(after, max_shard_size="10KB")
    tensors = [
        {
            name: value
            for path in folder.glob("*.safetensors")
            for name, value in load_file(path).items()
        }
        for folder in folders
    ]
    assert len(list(folders[0].glob("model-*.safetensors"))) > 3
    for name, value in pipe.model.state_dict().items():
        assert all(torch.equal(value, found[name]) for found in tensors)
    for path in folders[1].rglob("*.safetensors*"):
        assert path.read_bytes() == (folders[2] / path.relative_to(folders[1])).read_bytes(), (
            path.name
        )


def test_a_full_disk_loses_nothing(pipe, make_model, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    pipe.save_pretrained(folder)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    other = LoMDMPipeline(make_model(seed=1), pipe.scheduler)

    def fail(directory):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(other.scheduler, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_there_needs_nothing_beside_it(pipe, tmp_path, monkeypatch):
    parent, folder = tmp_path / "root", tmp_path / "root" / "out"
    folder.mkdir(parents=True)
    make = Path.mkdir

    def read_only_parent(path, *args, **kwargs):  # modes mean nothing to root, who may run this
        if path.parent == parent and not path.exists():
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only_parent)
    pipe.save_pretrained(folder)
    assert "model.safetensors" in files(folder) and not [*folder.glob(".*"), *folder.glob("_*")]


def test_options_that_do_not_exist_are_refused_before_anything_is_written(pipe, tmp_path):
    with pytest.raises(ValueError, match="'max_shards'.* are no options"):
        pipe.save_pretrained(tmp_path / "out", max_shards=3)
    assert not list(tmp_path.iterdir())


def test_an_upload_can_be_a_pull_request(pipe, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        HfApi, "create_repo", lambda *_, **__: RepoUrl("https://huggingface.co/me/tiny")
    )
    monkeypatch.setattr(HfApi, "file_exists", lambda *_: False)
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda _, **options: seen.update(options) or "commit"
    )
    assert pipe.push_to_hub("me/tiny", create_pr=True) == "commit"
    assert seen["create_pr"] is True and seen["repo_id"] == "me/tiny"


def test_targets_that_are_not_ours_are_not_touched(pipe, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        pipe.save_pretrained(tmp_path / "file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="holds another pipeline .StableDiffusionPipeline."):
        pipe.save_pretrained(other)
    assert files(other) == {"model_index.json"} and (tmp_path / "file").read_text() == "x"


def test_components_that_cannot_travel_are_refused(pipe, tmp_path):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(pipe.model, peft.LoraConfig(target_modules=["qkv_proj"]))
    with pytest.raises(ValueError, match="merge_and_unload"):
        LoMDMPipeline(adapted, pipe.scheduler).save_pretrained(tmp_path / "a")

    class HomeMade(type(pipe.tokenizer)):
        pass

    tokenizer = HomeMade(tokenizer_object=pipe.tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="PreTrainedTokenizerFast"):
        LoMDMPipeline(adapted.merge_and_unload(), pipe.scheduler, tokenizer).save_pretrained(
            tmp_path / "b"
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"variant": "fp16"}])
def test_other_formats_are_refused(pipe, tmp_path, options):
    with pytest.raises(ValueError, match="only plain safetensors"):
        pipe.save_pretrained(tmp_path / "out", **options)


def test_compiled_model_is_saved_as_itself(pipe, tmp_path):
    expected = write(pipe)
    pipe.model = torch.compile(pipe.model, backend="eager")
    pipe.save_pretrained(tmp_path / "out")
    assert torch.equal(write(LoMDMPipeline.from_pretrained(tmp_path / "out")), expected)


def test_model_card_gets_a_header_unless_it_has_one(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, model_card="# Mine\n")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and card.endswith("---\n\n# Mine\n")
    pipe.save_pretrained(tmp_path, model_card="---\nlicense: mit\n---\n")
    assert (tmp_path / "README.md").read_text() == "---\nlicense: mit\n---\n"


def test_plain_checkpoint_loads_with_a_default_scheduler(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    pipe = LoMDMPipeline.from_pretrained(tmp_path)
    assert pipe.tokenizer is None and dict(pipe.scheduler.config)["sampler"] == "sequential"
    assert torch.equal(write(pipe), write(LoMDMPipeline(model, LoMDMScheduler(mask_token_id=10))))


def test_tied_weights_survive(make_model, tmp_path):
    model = make_model(tie_word_embeddings=True)
    LoMDMPipeline(model, LoMDMScheduler(mask_token_id=10)).save_pretrained(tmp_path)
    reloaded = LoMDMPipeline.from_pretrained(tmp_path).model
    assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight
    assert torch.equal(reloaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_checkpoints_that_do_not_fit_their_configuration_are_refused(pipe, tmp_path, kind):
    pipe.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if kind == "missing":
        del weights["psi.dense.weight"]
    else:
        weights["psi.old.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{kind} ..psi"):
        LoMDMPipeline.from_pretrained(tmp_path)


def test_loading_takes_given_components_and_the_dtype(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    scheduler = LoMDMScheduler(mask_token_id=10, sampler="random")
    reloaded = LoMDMPipeline.from_pretrained(
        tmp_path, scheduler=scheduler, tokenizer=None, dtype=torch.bfloat16
    )
    assert (
        reloaded.scheduler is scheduler
        and reloaded.tokenizer is None
        and reloaded.model.dtype is torch.bfloat16
    )
    assert (
        LoMDMPipeline.from_pretrained(tmp_path, torch_dtype=torch.float64).model.dtype
        is torch.float64
    )
    assert (
        LoMDMPipeline.from_pretrained(tmp_path, model=pipe.model, trust_remote_code=True).model
        is pipe.model
    )


def test_options_of_the_download_reach_the_hub(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    options = {
        "revision": "v1",
        "token": "t",
        "cache_dir": "c",
        "force_download": True,
        "local_files_only": True,
    }
    seen = {}
    monkeypatch.setattr(
        loading, "snapshot_download", lambda name, **given: seen.update(given) or str(tmp_path)
    )
    LoMDMPipeline.from_pretrained("me/tiny", **options)
    assert seen.items() >= options.items()


def test_a_folder_loads_by_what_its_card_names(pipe, tmp_path):
    """`pipeline_tag` and `library_name` of the card: a pipeline of transformers."""
    import transformers
    from huggingface_hub import ModelCard

    pipe.save_pretrained(tmp_path / "out")
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert data["library_name"] == "transformers"
    fill = transformers.pipeline(data["pipeline_tag"], model=str(tmp_path / "out"), top_k=3)
    found = fill(f"ab{fill.tokenizer.mask_token}")
    assert len(found) == 3 and found[0]["score"] >= found[1]["score"] > 0
    assert all(answer["token"] != pipe.model.config.mask_token_id for answer in found)
