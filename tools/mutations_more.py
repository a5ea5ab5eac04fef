"""The second table of tools/mutations.py: `(name, file, what is replaced, by what, test files that must notice)`.

Most of these lie in files that the first table does not touch. Quotes are short: they name one expression each.
"""

from __future__ import annotations

PROCESS = "modeling/process_lomdm.py"
MODEL = "modeling/modeling_lomdm.py"
SCHEDULER = "modeling/scheduling_lomdm.py"
PIPELINE = "pipelines/pipeline_lomdm.py"
LIKELIHOOD = "evaluation/likelihood.py"
CORPUS = "evaluation/corpus.py"
CHECKPOINTING = "training/checkpointing.py"
DETOKENIZERS = "data/detokenizers.py"
TRAINER = "training/trainer.py"
EDGES = ("tests/schedulers/test_scheduler_edges.py",)
WINDOWS = ("tests/pipelines/test_windows.py",)
ROTATION = ("tests/training/test_rotation.py",)
WORDS = ("tests/data/test_detokenizers.py",)
SHARES = ("tests/evaluation/test_loss_by_share.py",)

MORE = (
    (
        "take 1 - exp for expm1 in the probability of masks",
        PROCESS,
        "log_revealed = torch.log(-torch.expm1(",
        "log_revealed = torch.log(1 - torch.exp(",
        ("tests/modeling/test_process_edges.py",),
    ),
    ("rank by the ratio of the two best", SCHEDULER, "best[:, 0] - best[:, 1]", "best[:, 0] / best[:, 1]", EDGES),
    ("keep a token behind top_p", SCHEDULER, "total - best >= self", "total - best > self", EDGES),
    ("drop the token that crosses top_p", SCHEDULER, "total - best >= self", "total > self", EDGES),
    ("end a window before its end", PROCESS, "since_start * num_blocks <= 1", "since_start * num_blocks < 1", EDGES),
    ("begin a window behind its beginning", PROCESS, "since_start >= 0", "since_start > 0", EDGES),
    ("draw the same in every window", PIPELINE, "manual_seed(seed + index)", "manual_seed(seed)", WINDOWS),
    (
        "go on with what the model said before a callback wrote",
        PIPELINE,
        'stale, window.left = left != window.left or "sample" in inputs, left',
        "stale, window.left = left != window.left, left",
        WINDOWS,
    ),
    (
        "never reset the loss of a step",
        TRAINER,
        "            self._step_loss, self._step_is_clean = 0.0, True\n        return loss",
        "            self._step_is_clean = True\n        return loss",
        ("tests/training/test_step_loss.py",),
    ),
    (
        "take the last name for the newest checkpoint",
        CHECKPOINTING,
        "key=lambda folder: int(folder.name[11:])",
        "key=lambda folder: folder.name",
        ROTATION,
    ),
    (
        "let kept checkpoints use up the rotation",
        CHECKPOINTING,
        "for folder in removable[: max(surplus, 0)]:",
        "for folder in set(removable) & set(checkpoints[: max(surplus, 0)]):",
        ROTATION,
    ),
    (
        "remove a checkpoint under its name",
        CHECKPOINTING,
        "    folder.rename(doomed)\n    shutil.rmtree(doomed)",
        "    shutil.rmtree(folder)",
        ROTATION,
    ),
    ("do not halve the variance of two samples", LIKELIHOOD, ".square().sum() / 2]", ".square().sum()]", SHARES),
    ("take main from the first order", LIKELIHOOD, "view(num_orders, -1).mean(0)", "view(num_orders, -1)[0]", SHARES),
    (
        "leave punctuation in front of quotes apart",
        DETOKENIZERS,
        'text = _PUNCTUATION.sub(r"\\1", text)\n    for',
        "for",
        WORDS,
    ),
    ("read N within words", DETOKENIZERS, r'r"(?<!\S)N(?!\S)", "1"', r'r"\bN\b", "1"', WORDS),
    ("leave N at the ends", DETOKENIZERS, r'r"(?<!\S)N(?!\S)", "1"', r'r"(?<=\s)N(?=\s)", "1"', WORDS),
    ("leave N of WikiText", DETOKENIZERS, r'r" N (?=\S)", " 1 "', r'r" N (?=\d)", " 1 "', WORDS),
    ("forget the euro sign", DETOKENIZERS, "[$£€]", "[$£]", WORDS),
    (
        "leave the lengths out of the digest of rows",
        CORPUS,
        "([len(text.ids)], *text)",
        "text",
        ("tests/evaluation/test_corpus.py",),
    ),
)
