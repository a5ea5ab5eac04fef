"""What the Trainer writes and uploads of a model: its folder with the record and the card."""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME

from ..modeling.scheduling_lomdm import LoMDMScheduler
from ..pipelines import LoMDMPipeline
from .model_card import (
    PICTURE_FILE,
    Description,
    TrainingRecord,
    can_draw,
    describe_diffusion,
    draw_picture,
    is_written_by_hand,
    model_card,
)
from .trainer_hooks import TrainerHooks
from .uploading import explained_upload

CARD_FILE = "README.md"


class FolderWriter(TrainerHooks):
    """The part of `LoMDMTrainer` that writes folders, cards and records, and uploads them."""

    # Whether the model reveals its tokens in an order that a picture can show.
    has_order = True
    data: str | None = None  # what the model is trained on, in words, for its card
    base_name: str | None = None  # where the weights are that adapters change
    # of the rows and the tokenizer: a run goes on with the same alone
    data_fingerprint: str | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.measured: dict[str, float] = {}  # metrics of the weights as they are

    def write_folder(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes what a folder keeps of the model: weights, tokenizer, record and card."""
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        folder.mkdir(parents=True, exist_ok=True)
        if self.staging:
            # the Trainer resumes by the weights' names in memory; GPT-NeoX saves under other
            # names
            model.save_pretrained(folder, save_original_format=False)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        else:
            by_hand = is_written_by_hand(folder / CARD_FILE)
            pipe = make_pipeline(model, tokenizer) if self.has_order else None
            picture = pipe is not None and can_draw(pipe)
            if picture:
                draw_picture(pipe, folder / PICTURE_FILE)
            self.write_model(
                model, tokenizer, folder, None if by_hand else self._card(picture=picture)
            )
        self._record().save(folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def write_model(
        self, model: PreTrainedModel, tokenizer, folder: Path, card: str | None
    ) -> None:
        """Writes what loads without this package; `None` leaves the card as it is."""
        make_pipeline(model, tokenizer).save_pretrained(folder, model_card=card)

    def write_merged(self, folder: Path) -> None:
        """Writes the whole model of a run with adapters as a Hub folder, averaged as they are.

        It is float32, as the updates are, whatever the precision of the base.
        """
        with self.averaged_weights():
            model = copy.deepcopy(self.accelerator.unwrap_model(self.model)).float()
        folder.mkdir(parents=True, exist_ok=True)
        card = self._card(folder.absolute().name, picture=False)
        self.write_model(model.merge_and_unload().eval(), self.processing_class, folder, card)
        self._record().save(folder)

    def init_hf_repo(self, *args, **kwargs) -> None:
        """As in `transformers.Trainer`; `ConnectionError` without a repository to push to."""
        repo_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        with explained_upload(f"no repository {repo_id} to push to could be made"):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, *args, **kwargs):
        """As in `transformers.Trainer`; the title of the card is the whole name of the repository.

        Raises:
            ConnectionError: the upload failed. `output_dir` is complete, the repository as it was;
                the same call, or the same `train.py` command, completes it.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(
                **{name: kwargs[name] for name in ("token", "private") if name in kwargs}
            )
        # the card's code loads the model by this name
        kwargs.setdefault("model_name", self.hub_model_id)
        with explained_upload(
            f"{self.args.output_dir} is written, but was not uploaded to {self.hub_model_id}"
        ):
            return super().push_to_hub(*args, **kwargs)

    def create_model_card(
        self,
        language=None,
        license=None,
        tags=None,
        model_name=None,
        finetuned_from=None,
        tasks=None,
        dataset_tags=None,
        dataset=None,
        dataset_args=None,
    ) -> None:
        """Writes `README.md` into `output_dir`, unless one that was written by hand is there.

        Takes what `transformers.Trainer.create_model_card` takes; `tasks` and `dataset_args` have
        no place in it.
        """
        if self.hub_model() is None:
            header = {
                "language": language,
                "license": license,
                "finetuned_from": finetuned_from,
                "tasks": tasks,
            }
            data = {"dataset_tags": dataset_tags, "dataset": dataset, "dataset_args": dataset_args}
            super().create_model_card(tags=tags, model_name=model_name, **header, **data)
            return
        path = Path(self.args.output_dir) / CARD_FILE
        if not self.is_world_process_zero() or is_written_by_hand(path):
            return
        header = {
            "language": language,
            "license": license,
            "base_model": finetuned_from,
            "datasets": dataset_tags,
        }
        tags = [tags] if isinstance(tags, str) else tags or []
        path.write_text(
            self._card(model_name, tags=tags, dataset=dataset or dataset_tags, **header),
            encoding="utf-8",
        )

    def _card(self, name: str | None = None, **details) -> str:
        folder = Path(self.args.output_dir).absolute()
        details.setdefault("picture", (folder / PICTURE_FILE).is_file())
        name = name or self.hub_model_id or self.args.hub_model_id or folder.name
        return model_card(name, self.describe(), self._record(), **details)

    def _record(self) -> TrainingRecord:
        record = TrainingRecord.of(self.args, self.state.global_step, self.measured, self.data)
        record.data_fingerprint = self.data_fingerprint
        return record

    def describe(self) -> Description:
        """What the card and the script say of the model."""
        return describe_diffusion(self.model.config)


def make_pipeline(model: PreTrainedModel, tokenizer) -> LoMDMPipeline:
    """A pipeline with the scheduler that suits the model."""
    scheduler = LoMDMScheduler(
        mask_token_id=model.config.mask_token_id, block_size=model.config.block_size
    )
    return LoMDMPipeline(model, scheduler, tokenizer)
