"""Breaks the library on purpose and checks that the tests notice.

    python tools/mutations.py    # about half an hour on two cores; status 1 if a mutation survives

Each mutation replaces one piece of source in a temporary copy of the project and runs the tests
that ought to fail there. The table says which test killed it. `mutations_more.py` holds those of
the files around the mathematics.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mutations_more import MORE

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests")
PROCESS = "modeling/process_lomdm.py"
MASKS = "modeling/attention_lomdm.py"
BACKBONE = "modeling/backbone_lomdm.py"
MODEL = "modeling/modeling_lomdm.py"
BATCH = "modeling/batch_lomdm.py"
RATES = "modeling/rates_lomdm.py"
CONTEXT = "modeling/context_lomdm.py"
TOKEN_LOSSES = "modeling/token_losses_lomdm.py"
LIKELIHOOD = "evaluation/likelihood.py"
ORDER = "evaluation/order.py"
OPTIMIZER = "training/optimizer.py"
SCHEDULER = "modeling/scheduling_lomdm.py"
FILLING = "pipelines/filling_lomdm.py"
VALUES = ("tests/modeling/test_process.py", "tests/modeling/test_bounds.py")
GRADIENTS = ("tests/modeling/test_gradients.py",)
EVALUATION = ("tests/evaluation/test_likelihood.py",)
FAMILY = ("tests/modeling/test_family_bounds.py",)
FAMILY_EVALUATION = ("tests/evaluation/test_family_likelihood.py",)
PUBLISHED = ("tests/modeling/test_published_losses.py",)
BLOCKS = ("tests/modeling/test_blocks.py",)
ATTENTION = ("tests/modeling/test_block_attention.py",)
CACHE = ("tests/modeling/test_block_cache.py",)
SAMPLING = ("tests/pipelines/test_sampling_law.py",)
BLOCK_SAMPLING = ("tests/pipelines/test_block_sampling.py",)


@dataclass(frozen=True)
class Mutation:
    """A piece of `src/hf_lomdm/<file>`, what to put in its place, and tests that must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "drop the score term",
        MODEL,
        "objective = nelbo + score - score.detach()",
        "objective = nelbo",
        GRADIENTS,
    ),
    Mutation(
        "use the same draw for both views",
        MODEL,
        "seeds = torch.cat([row_seeds(generator, num_texts, device) for _ in "
        "range(self.num_views)])",
        "seeds = row_seeds(generator, num_texts, device).repeat(self.num_views)",
        GRADIENTS,
    ),
    Mutation(
        "let the heads reach the backbone",
        RATES,
        "features = features.detach()  # heads",
        "features = features  # heads",
        GRADIENTS,
    ),
    Mutation(
        "do not tell phi in training what is given",
        MODEL,
        "rates = self.rate_law.forward_rates(self, batch)",
        "rates = self.rate_law.forward_rates(self, batch._replace(maskable=None))",
        FAMILY,
    ),
    Mutation(
        "tell phi the opposite in training",
        MODEL,
        "rates = self.rate_law.forward_rates(self, batch)",
        "rates = self.rate_law.forward_rates(self, batch._replace(maskable=~batch.maskable))",
        FAMILY,
    ),
    Mutation(
        "do not tell phi in evaluation what is given",
        LIKELIHOOD,
        "rates = model.forward_rates(batch.ids, attention_mask, given=~batch.maskable)\n        if",
        "rates = model.forward_rates(batch.ids, attention_mask)\n        if",
        (*EVALUATION, *FAMILY_EVALUATION),
    ),
    Mutation(
        "do not tell phi in the statistics of the order what is given",
        ORDER,
        "w = self.model.forward_rates(batch.ids, batch.attention_mask, given=~batch.maskable)",
        "w = self.model.forward_rates(batch.ids, batch.attention_mask)",
        ("tests/evaluation/test_given.py",),
    ),
    Mutation(
        "do not tell phi in the pilot of the shares what is given",
        LIKELIHOOD,
        "rates = model.forward_rates(batch.ids, attention_mask, given=~batch.maskable)\n        "
        "for number",
        "rates = model.forward_rates(batch.ids, attention_mask)\n        for number",
        ("tests/evaluation/test_given.py",),
    ),
    Mutation(
        "let joined optimizers go on from the state before loading",
        OPTIMIZER,
        "super().load_state_dict(state_dict)\n        self._share()",
        "super().load_state_dict(state_dict)",
        ("tests/training/test_optimizer.py",),
    ),
    Mutation(
        "read a single view where more are asked for",
        MODEL,
        "return self.config.num_views or self.rate_law.num_views",
        "return self.rate_law.num_views",
        FAMILY,
    ),
    Mutation(
        "drop the velocity term of the loss",
        MODEL,
        "nelbo = (main + velocity)",
        "nelbo = main",
        VALUES,
    ),
    Mutation(
        "drop the velocity term of the order bound",
        PROCESS,
        "return BoundTerms(view.weight * main, view.weight * divergence, (safe_v / "
        "safe_w).detach())",
        "return BoundTerms(view.weight * main, 0 * divergence, (safe_v / safe_w).detach())",
        VALUES,
    ),
    Mutation(
        "flip the order's sort",
        PROCESS,
        "order = log_time.argsort(dim=-1, stable=True)",
        "order = log_time.argsort(dim=-1, stable=True, descending=True)",
        VALUES,
    ),
    Mutation(
        "sum W over all positions",
        PROCESS,
        "return w_masked, block_sum(w_masked, blocks), block_sum(v * masked, blocks)",
        "return w_masked, block_sum(w, blocks), block_sum(v * masked, blocks)",
        VALUES,
    ),
    Mutation(
        "drop 1/u",
        PROCESS,
        "weight = 1 / (kappa * quantiles)",
        "weight = log_u.exp() / (kappa * quantiles)",
        VALUES,
    ),
    Mutation(
        "drop 1/u above the cut",
        PROCESS,
        "(1 - epsilon) / ((1 - share) * u))",
        "(1 - epsilon) / (1 - share))",
        VALUES,
    ),
    Mutation(
        "drop the reconstruction term",
        PROCESS,
        "weight = torch.where(reconstruction, 1 / share,",
        "weight = torch.where(reconstruction, 0.0,",
        VALUES,
    ),
    Mutation(
        "count padding in the mean of NormSig",
        PROCESS,
        "weight = torch.ones_like(scores) if real is None else real.to(scores.dtype)",
        "weight = torch.ones_like(scores)",
        VALUES,
    ),
    Mutation(
        "leave the proposal out of several orders",
        LIKELIHOOD,
        "log_ratio = (log_choices + log_tokens - log_q)",
        "log_ratio = (log_choices + log_tokens)",
        EVALUATION,
    ),
    Mutation(
        "report the spread of replicates as standard error",
        LIKELIHOOD,
        "error = replicates.sum(1).std(0) / len(replicates) ** 0.5",
        "error = replicates.sum(1).std(0)",
        EVALUATION,
    ),
    Mutation(
        "do not stratify within a text",
        LIKELIHOOD,
        "quantiles = (offset + stratum) / size",
        "quantiles = offset",
        EVALUATION,
    ),
    Mutation(
        "leave the choice of the position out of the exact likelihood",
        LIKELIHOOD,
        "values[part] = log_choice + log_token",
        "values[part] = log_token",
        EVALUATION,
    ),
    Mutation(
        "leak temperature into the reveal of sequential",
        SCHEDULER,
        "return uniforms.log() / rates\n",
        "return uniforms.log() / rates ** (1 / self.config.temperature)\n",
        SAMPLING,
    ),
    Mutation(
        "leak temperature into the reveal of ancestral",
        SCHEDULER,
        "masked & (uniforms < chances)",
        "masked & (uniforms**self.config.temperature < chances)",
        SAMPLING,
    ),
    Mutation(
        "leave omega out of the token law",
        RATES,
        "return logits + model.omega().to(logits.dtype)",
        "return logits + 0 * model.omega().to(logits.dtype)",
        FAMILY,
    ),
    Mutation(
        "leave omega out of the reverse rates",
        RATES,
        "log_rate_of_token_rates(at_least_float32(logits), model.omega())",
        "log_rate_of_token_rates(at_least_float32(logits), 0 * model.omega())",
        FAMILY,
    ),
    Mutation(
        "do not train omega through the token law",
        RATES,
        "return logits + model.omega().to(logits.dtype)",
        "return logits + model.omega().detach().to(logits.dtype)",
        GRADIENTS,
    ),
    Mutation(
        "do not train the backbone through reverse rates that come from logits",
        MODEL,
        "checkpoint(self.rates_of_logits, rows, **checkpoint_options)",
        "checkpoint(self.rates_of_logits, rows.detach(), **checkpoint_options)",
        GRADIENTS,
    ),
    Mutation(
        "leave the target out of the gradient of a token loss",
        TOKEN_LOSSES,
        "gradient.scatter_(-1, target, torch.expm1(-loss))",
        "gradient.scatter_(-1, target, torch.exp(-loss))",
        GRADIENTS,
    ),
    Mutation(
        "take the loss for log Z in the gradient of a token loss",
        TOKEN_LOSSES,
        "(rows - (loss + at_least_float32(rows.gather(-1, target)))).exp_()",
        "(rows - loss).exp_()",
        GRADIENTS,
    ),
    Mutation(
        "see one key too few where a chunk of queries ends",
        MASKS,
        "near, end = first // size * size, -(-last // size) * size",
        "near, end = first // size * size, last",
        ATTENTION,
    ),
    Mutation(
        "see one key too few where a chunk of queries begins",
        MASKS,
        "near, end = first // size * size, -(-last // size) * size",
        "near, end = first, -(-last // size) * size",
        ATTENTION,
    ),
    Mutation(
        "see a clean block too few before a chunk of a view ends",
        MASKS,
        "(last - 1) // size * size",
        "(last - 1) // size * size - size",
        ATTENTION,
    ),
    Mutation(
        "see a block too few at the far end of a chunk",
        MASKS,
        "near + size - reach",
        "near + 2 * size - reach",
        ATTENTION,
    ),
    Mutation(
        "replace V - 1 by V in the scores",
        PROCESS,
        "math.log(logits.shape[-1] - 1)",
        "math.log(logits.shape[-1])",
        PUBLISHED,
    ),
    Mutation(
        "reverse the windows of the blocks",
        PROCESS,
        "start = (num_blocks - 1 - block) * unit",
        "start = block * unit",
        BLOCKS,
    ),
    Mutation(
        "give every block the quantile of the text",
        PROCESS,
        "share = order / in_text.sum",
        "share = 0 * block / in_text.sum",
        BLOCKS,
    ),
    Mutation(
        "give the strata to the blocks from left to right",
        PROCESS,
        "share = order / in_text.sum",
        "share = block / in_text.sum",
        BLOCKS,
    ),
    Mutation(
        "take the mean of NormSig over the text instead of the block",
        RATES,
        "model.config.c1, model.config.c2, batch.real, batch.blocks)",
        "model.config.c1, model.config.c2, batch.real)",
        BLOCKS,
    ),
    Mutation(
        "count the blocks of padded texts from the first column",
        BATCH,
        "position = position_ids(attention_mask, total, device)",
        "position = position_ids(None, total, device)",
        BLOCKS,
    ),
    Mutation(
        "weigh the score of a text instead of those of its blocks",
        MODEL,
        (
            "rloo_score(\n"
            "                (terms.main + terms.velocity).view(by_view), log_q.view(by_view)\n"
            "            ).sum(-1)"
        ),
        "rloo_score((terms.main + terms.velocity).view(by_view).sum(-1), "
        "log_q.view(by_view).sum(-1))",
        FAMILY,
    ),
    Mutation(
        "compare a view with the mean of all, itself among them",
        PROCESS,
        "(bounds - bounds.mean(0)).detach() * num_views / (num_views - 1)",
        "(bounds - bounds.mean(0)).detach()",
        GRADIENTS,
    ),
    Mutation(
        "drop 1/u of clipped times",
        PROCESS,
        "u.log(), 1 / u",
        "u.log(), torch.ones_like(u)",
        FAMILY,
    ),
    Mutation(
        "clip the times of evaluation",
        MODEL,
        "(self.config.time_epsilon, self.config.time_range) if self.training else (None, None)",
        "(self.config.time_epsilon, self.config.time_range)",
        FAMILY,
    ),
    Mutation(
        "let the clean copy see the views",
        MASKS,
        "own = (distance == 0) & (copy[query] == copy[key])",
        "own = (distance == 0) & ((copy[query] == copy[key]) | (copy[query] == 0))",
        ATTENTION,
    ),
    Mutation(
        "let a view see noise before its block",
        MASKS,
        "(distance < reach) & (copy[key] == 0)",
        "(distance < reach)",
        ATTENTION,
    ),
    Mutation(
        "let a view see the clean text of its block",
        MASKS,
        "((distance > 0)",
        "((distance >= 0)",
        ATTENTION,
    ),
    Mutation(
        "leave the clean text out of the last layer",
        BACKBONE,
        ("hidden = hidden[:, first_output:] + (\n            nn"),
        "hidden = hidden[:, : hidden.shape[1] - first_output] + (nn",
        ATTENTION,
    ),
    Mutation(
        "read a few rows with the padding of the first",
        BACKBONE,
        "attention_mask.split(rows)",
        "[attention_mask[: len(part)] for part in text.split(rows)]",
        ("tests/modeling/test_modeling.py",),
    ),
    Mutation("see beyond the context", MASKS, "(distance < reach) & ", "", ATTENTION),
    Mutation(
        "see the cache one block late",
        MASKS,
        "return own | ((distance > 0)",
        "return own | ((distance > int(past > 0))",
        CACHE,
    ),
    Mutation(
        "count the positions behind a cache from its start",
        MASKS,
        "new = position[:, past_length:]",
        "new = position[:, : position.shape[1] - past_length]",
        CACHE,
    ),
    Mutation(
        "leave the order head out of the cache",
        RATES,
        "hidden = self.layer(features, mask, rotary, past_key_values=past_key_values)",
        "hidden = self.layer(features, mask, rotary)",
        CACHE,
    ),
    Mutation(
        "weigh the orders of a text instead of those of its blocks",
        LIKELIHOOD,
        "bound = (math.log(num_orders) - log_ratio.logsumexp(0)).sum(-1)",
        "bound = math.log(num_orders) - log_ratio.sum(-1).logsumexp(0)",
        FAMILY_EVALUATION,
    ),
    Mutation(
        "choose among all blocks in the exact likelihood",
        LIKELIHOOD,
        "total = broadcast_to_positions(block_sum(rates * masked, batch.blocks), batch.blocks)",
        "total = (rates * masked).sum(-1, keepdim=True)",
        FAMILY_EVALUATION,
    ),
    Mutation(
        "cache one block late",
        CONTEXT,
        "self._cut(slice(None, -width))",
        "self._cut(slice(None, -tokens.shape[1]))",
        BLOCK_SAMPLING,
    ),
    Mutation(
        "put masks for the finished block into the cache",
        FILLING,
        "context.extend(*self._both(window))",
        "context.extend(0 * window.sample + config.mask_token_id, window.attention_mask)",
        BLOCK_SAMPLING,
    ),
    *(Mutation(*row) for row in MORE),
)


def mutate(text: str, mutation: Mutation) -> str:
    """The source with the mutation in it.

    Raises:
        ValueError: if what it replaces is not there exactly once.
    """
    count = text.count(mutation.old)
    if count != 1:
        raise ValueError(
            f"mutation {mutation.name!r}: its text occurs {count} times in {mutation.file}, "
            "expected once. Adapt it in tools/mutations.py to the present source."
        )
    return text.replace(mutation.old, mutation.new)


def failing_tests(tests: tuple[str, ...], mutation: Mutation | None = None) -> list[str]:
    """The first failing tests of `tests` (files) in a mutated copy; none: it survives.

    Raises:
        RuntimeError: if the tests could not run in the copy at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in COPIED:
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ROOT.iterdir():  # scripts, checkpoints and pages that tests read
            if part.name not in COPIED:
                (copy / part.name).symlink_to(part)
        if mutation is not None:
            source = copy / "src" / "hf_lomdm" / mutation.file
            source.write_text(
                mutate(source.read_text(encoding="utf-8"), mutation), encoding="utf-8"
            )
        return _run(copy, tests)


def _run(copy: Path, tests: tuple[str, ...]) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    where = [
        sys.executable,
        "-c",
        "import importlib.util as u; print(u.find_spec('hf_lomdm').origin)",
    ]
    origin = subprocess.run(
        where, cwd=copy, env=environment, capture_output=True, text=True, check=True
    ).stdout
    if not Path(origin.strip()).resolve().is_relative_to(copy.resolve()):
        raise RuntimeError(f"the copy's tests would import the package from {origin.strip()}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # pytest: 1 is a failed test, all else is no answer
        raise RuntimeError(
            f"pytest ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)


def main() -> int:
    """Runs everything, prints the table; 1 if a mutation survives or the tests fail without one."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    broken = failing_tests(
        tuple(sorted({test for mutation in MUTATIONS for test in mutation.tests}))
    )
    if broken:
        print(f"the tests fail without any mutation: {broken[0]}")
        return 1
    survivors = 0
    for mutation in MUTATIONS:
        killers = failing_tests(mutation.tests, mutation)
        survivors += not killers
        print(f"{mutation.name:60s} {killers[0] if killers else 'SURVIVED'}", flush=True)
    print(f"{len(MUTATIONS) - survivors} of {len(MUTATIONS)} mutations killed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
