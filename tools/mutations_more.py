"""The second table of tools/mutations.py: `MORE`, with the fields of `Mutation`.

Most of these lie in files that the first table does not touch. Quotes are short: they name one
expression each.
"""

# for each file and the tests that must notice: (name, what is replaced, by what)
TABLE = (
    (
        "adapters/order_adapter.py",
        ("tests/adapters/test_order_adapter.py",),
        (
            (
                "reveal suppressed tokens",
                "for token in (self.config.mask_token_id, *self.config.suppressed_token_ids):",
                "for token in (self.config.mask_token_id,):",
            ),
        ),
    ),
    (
        "adapters/frozen_base.py",
        ("tests/adapters/test_order_adapter.py",),
        (
            (
                "read a text where padding was",
                "place.where(attention_mask.bool(), width)",
                "place.where(attention_mask.bool(), 0)",
            ),
            (
                "count the unused positions of RoBERTa",
                "table.padding_idx + 1",
                "0 * table.padding_idx",
            ),
        ),
    ),
    (
        "evaluation/accuracy.py",
        ("tests/evaluation/test_accuracy.py",),
        (
            ("leave the samples out of the variance of one", ' * record["num_samples"]', ""),
            ("leave the Monte-Carlo variance in that of texts", " - error.square().mean()", ""),
            ("ask for samples by the width", "(width / target) ** 2", "(width / target)"),
            ("ask about the same positions of every text", "span, seed + number)", "span, seed)"),
        ),
    ),
    (
        "evaluation/compare.py",
        ("tests/evaluation/test_compare.py",),
        (
            ("do not correct the paired error", " * counted / max(counted - 1, 1)", ""),
            (
                "pair rows that are grouped otherwise",
                '(record["rows"], record["groups"]) == (first["rows"], first["groups"])',
                'record["rows"] == first["rows"]',
            ),
            ("add the errors of other rows", "math.hypot(*errors)", "sum(errors)"),
        ),
    ),
    (
        "evaluation/corpus.py",
        ("tests/evaluation/test_corpus.py::test_parts_of_rows_that_are_cut_elsewhere_are_refused",),
        (("leave the lengths out of the digest of rows", "([len(text.ids)], *text)", "text"),),
    ),
    (
        "data/batches.py",
        (
            "tests/data/test_batches.py::test_batches_hold_similar_lengths_and_no_more_tokens_than_asked_for",
        ),
        (
            (
                "fill a batch one row too far",
                "(len(batches[-1]) + 1) * longest",
                "len(batches[-1]) * longest",
            ),
        ),
    ),
    (
        "evaluation/corpus.py",
        (
            "tests/evaluation/test_corpus.py::test_few_texts_that_happen_to_agree_have_at_least_their_monte_carlo_error",
        ),
        (("report less than the Monte-Carlo error", "error = max(error, monte_carlo)", "pass"),),
    ),
    (
        "evaluation/corpus.py",
        ("tests/evaluation/test_corpus.py::test_rolling_value_is_the_sum_of_its_parts",),
        (("add errors of rows of a text", "math.hypot(*text)", "sum(text)"),),
    ),
    (
        "data/rows.py",
        ("tests/data/test_rows.py::test_windows_count_each_token_once_and_read_nothing_behind",),
        (("count tokens of the window before again", "labels[: counted - start] = -100", "pass"),),
    ),
    (
        "evaluation/density.py",
        ("tests/evaluation/test_density.py",),
        (("fit a density by the longest stratum", "slope = (curve * weights)", "slope = curve"),),
    ),
    (
        "evaluation/generation.py",
        ("tests/evaluation/test_generation.py",),
        (
            (
                "step twice by the length of a power of two",
                "if count < length]",
                "if count <= length]",
            ),
            (
                "draw the start token of an autoregressive model",
                "logits[:, config.bos_token_id] = -torch.inf",
                "pass",
            ),
            (
                "end a text at a BOS that is EOS",
                "first = int(row[0] == config.bos_token_id)",
                "first = 0",
            ),
            (
                "count an EOS in the entropy",
                "for token in row[first:end] if token not in special",
                "for token in row[first : end + 1]",
            ),
            ("turn passes and tokens round", "tokens / passes", "passes / tokens"),
        ),
    ),
    (
        "evaluation/judge.py",
        ("tests/evaluation/test_judge.py",),
        (
            ("read windows without overlap", "max(1, window // 2)", "max(1, window - 1)"),
            ("forget texts that are empty", "len(texts) - len(rows)", "0"),
            (
                "report the error in nats for that of the perplexity",
                'None if error is None else means["perplexity"] * error',
                "error",
            ),
            (
                "count repeated phrases of all texts",
                "sum(len(set(row)) for row in phrases)",
                "len({gram for row in phrases for gram in row})",
            ),
        ),
    ),
    (
        "evaluation/likelihood.py",
        ("tests/evaluation/test_loss_by_share.py",),
        (
            (
                "do not halve the variance of two samples",
                ".square().sum() / 2\n",
                ".square().sum()\n",
            ),
            (
                "take main from the first order",
                "view(num_orders, -1).mean(0)",
                "view(num_orders, -1)[0]",
            ),
        ),
    ),
    (
        "evaluation/order.py",
        ("tests/evaluation/test_order.py",),
        (
            ("do not correct errors over texts", " * self._texts / (self._texts - 1)", ""),
            ("put ties first", "first + tied / 2", "first + tied"),
            ("count ties in tau", "forward = (pair & ordered)", "forward = (pair & True)"),
            (
                "take rounding of equal rates for variation",
                "return moments * ((moments[1] > noise) & (moments[2] > noise))",
                "return moments",
            ),
        ),
    ),
    (
        "data/rows.py",
        ("tests/data/test_rows.py",),
        (
            (
                "put a separator behind every piece",
                "((ids, *back) if is_end else (ids,))",
                "(ids, *back)",
            ),
        ),
    ),
    (
        "data/sudoku.py",
        ("tests/data/test_puzzles.py",),
        (
            (
                "accept a grid that changes a clue",
                " & ((clues == EMPTY) | (grids == clues)).all(-1)",
                "",
            ),
        ),
    ),
    (
        "evaluation/sudoku.py",
        ("tests/evaluation/test_sudoku.py",),
        (
            ("take any possible place for forced", "(places == 1)", "(places >= 1)"),
            (
                "count clues among the cells right",
                "(grids == solutions)[revealed]",
                "(grids == solutions)",
            ),
            (
                "take all reveals for those of the step",
                "(forced & now).sum(-1)",
                "(forced & masked).sum(-1)",
            ),
        ),
    ),
    (
        "evaluation/zero_shot.py",
        ("tests/evaluation/test_zero_shot.py",),
        (("leave line ends out of WikiText", 'row["text"] + "\\n"', 'row["text"]'),),
    ),
    (
        "hub/conversion.py",
        ("tests/hub/test_conversion.py",),
        (
            (
                "embed the time 0 as sines first",
                "torch.cat((weight.new_ones(half), weight.new_zeros(weight.shape[1] - half)))",
                "torch.cat((weight.new_zeros(half), weight.new_ones(weight.shape[1] - half)))",
            ),
            ("leave a gate off a bias", 'mlp.2.bias"] * gate_2', 'mlp.2.bias"]'),
        ),
    ),
    (
        "modeling/context_lomdm.py",
        ("tests/pipelines/test_long_prompts.py",),
        (
            (
                "read the chunks of a long prompt without padding",
                "None if mask is None else mask[:, :-behind]",
                "None",
            ),
            (
                "read the chunks of a long prompt with the padding of its beginning",
                "mask[:, :-behind]",
                "mask[:, : mask.shape[1] - behind - self.dropped]",
            ),
        ),
    ),
    (
        "modeling/process_lomdm.py",
        ("tests/modeling/test_process_edges.py",),
        (
            (
                "take 1 - exp for expm1 in the probability of masks",
                ("log_revealed = torch.log(\n        -torch.expm1("),
                "log_revealed = torch.log(1 - torch.exp(",
            ),
        ),
    ),
    (
        "modeling/process_lomdm.py",
        ("tests/schedulers/test_scheduler_edges.py",),
        (
            (
                "end a window before its end",
                "since_start * num_blocks <= 1",
                "since_start * num_blocks < 1",
            ),
            ("begin a window behind its beginning", "since_start >= 0", "since_start > 0"),
        ),
    ),
    (
        "modeling/token_draw_lomdm.py",
        ("tests/schedulers/test_sampling_laws.py", "tests/schedulers/test_scheduling_lomdm.py"),
        (
            (
                "draw from top_k + 1",
                "(part[:, :top_k] for part",
                "(part[:, : top_k and top_k + 1] for part",
            ),
        ),
    ),
    (
        "modeling/token_draw_lomdm.py",
        ("tests/schedulers/test_scheduler_edges.py",),
        (
            (
                "rank by the ratio of the two best",
                "best[:, 0] - best[:, 1]",
                "best[:, 0] / best[:, 1]",
            ),
            ("keep a token behind top_p", "total - best >= top_p", "total - best > top_p"),
            ("drop the token that crosses top_p", "total - best >= top_p", "total > top_p"),
        ),
    ),
    (
        "modeling/forward_lomdm.py",
        ("tests/schedulers/test_scheduling_lomdm.py",),
        (
            (
                "mask padding in add_noise",
                "            masked &= attention_mask.bool()\n",
                "            pass\n",
            ),
        ),
    ),
    (
        "pipelines/filling_lomdm.py",
        ("tests/pipelines/test_windows.py",),
        (
            ("draw the same in every window", "(seed + window +", "(seed +"),
            (
                "go on with what the model said before a callback wrote",
                "stale, window.num_masked = stale or self.rewritten, left",
                "stale, window.num_masked = stale, left",
            ),
        ),
    ),
    (
        "training/checkpointing.py",
        ("tests/training/test_rotation.py",),
        (
            (
                "take the last name for the newest checkpoint",
                "key=lambda folder: int(folder.name[11:])",
                "key=lambda folder: folder.name",
            ),
            (
                "let kept checkpoints use up the rotation",
                "for folder in removable[: max(surplus, 0)]:",
                "for folder in set(removable) & set(checkpoints[: max(surplus, 0)]):",
            ),
            (
                "remove a checkpoint under its name",
                "    folder.rename(doomed)\n    shutil.rmtree(doomed)",
                "    shutil.rmtree(folder)",
            ),
        ),
    ),
    (
        "data/rows.py",
        ("tests/data/test_counts.py",),
        (
            (
                "count the dropped tokens of the last document alone",
                "counts.dropped += sum(max(",
                "counts.dropped = sum(max(",
            ),
            (
                "count the unknown tokens of the last batch",
                "counts.unknown += ",
                "counts.unknown = ",
            ),
        ),
    ),
    (
        "data/splits.py",
        ("tests/data/test_splits.py",),
        (
            (
                "tell a model of padded rows of an EOS",
                'ids["eos_token_id"] if arguments.packing else None',
                'ids["eos_token_id"]',
            ),
        ),
    ),
    (
        "data/batches.py",
        ("tests/data/test_batches.py", "tests/data/test_puzzles.py"),
        (("count what is given in a row of its own", 'row.get("labels", ids)', "ids"),),
    ),
    (
        "data/detokenizers.py",
        ("tests/data/test_detokenizers.py",),
        (
            (
                "leave punctuation in front of quotes apart",
                'text = _PUNCTUATION.sub(r"\\1", text)\n    for',
                "for",
            ),
            ("read N within words", 'r"(?<!\\S)N(?!\\S)", "1"', 'r"\\bN\\b", "1"'),
            ("leave N at the ends", 'r"(?<!\\S)N(?!\\S)", "1"', 'r"(?<=\\s)N(?=\\s)", "1"'),
            ("leave N of WikiText", 'r" N (?=\\S)", " 1 "', 'r" N (?=\\d)", " 1 "'),
            ("forget the euro sign", "[$£€]", "[$£]"),
        ),
    ),
    (
        "training/ema.py",
        (
            "tests/hub/test_export.py::test_checkpoint_of_a_trainer_is_exported_with_its_averaged_weights",
        ),
        (
            (
                "convert the weights in place of their average",
                "weights[name].copy_(value)",
                "weights[name].clone()",
            ),
        ),
    ),
    (
        "training/ema.py",
        (
            "tests/training/test_trainer_average.py::test_the_average_follows_its_recursion_with_warm_up",
            "tests/training/test_trainer_average.py::test_average_is_swapped_in_saved_and_loaded_exactly",
            "tests/training/test_trainer_average.py::test_average_of_bfloat16_weights_is_kept_in_float32_and_frozen_weights_are_left_out",
        ),
        (
            (
                "average without a warm-up",
                "min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))",
                "self.decay",
            ),
            (
                "forget the count of averaged steps",
                "self.num_updates = num_updates",
                "self.num_updates = 0",
            ),
            (
                "leave the average in a model whose evaluation fails",
                "        try:\n            yield\n        finally:\n            _copy_weights(own, "
                "model)",
                "        yield\n        _copy_weights(own, model)",
            ),
            (
                "average in the precision of the weights",
                "weight.detach().float().clone()",
                "weight.detach().clone()",
            ),
        ),
    ),
    (
        "data/examples.py",
        ("tests/training/test_finetune_lora.py",),
        (
            ("do not fill up answers", "[eos] * (completion_length - len(example.answer))", "[]"),
            ("keep examples beyond the model's context", " and len(ids) <= max_length", ""),
        ),
    ),
    (
        "training/measures.py",
        ("tests/training/test_step_loss.py",),
        (("count padding as maskable in training", "labelled & padding.bool()", "labelled"),),
    ),
    (
        "training/optimizer.py",
        ("tests/training/test_optimizer.py",),
        (
            (
                "do not decay the matrices of Muon",
                "weight_decay=weight_decay, adjust",
                "weight_decay=0.0, adjust",
            ),
        ),
    ),
    (
        "training/optimizer.py",
        ("tests/training/test_trainer_optimizer.py::test_muon_where_it_cannot_work_is_refused",),
        (
            (
                "let Muon train frozen matrices",
                "if weight.requires_grad and weight.dim()",
                "if weight.dim()",
            ),
        ),
    ),
    (
        "data/sudoku.py",
        ("tests/data/test_puzzles.py",),
        (
            ("augment every row alike", "manual_seed(index)", "manual_seed(0)"),
            ("always transpose", "generator=generator) < 0.5", "generator=generator) < 2"),
        ),
    ),
    (
        "data/text.py",
        ("tests/data/test_splits.py", "tests/data/test_rows.py", "tests/data/test_reading.py"),
        (
            ("hold out a document less", 'side="right"', 'side="left"'),
            (
                "hold out a whole text of one long document",
                "min(max(first, 1), len(texts) - 1)",
                "min(max(first, 0), len(texts) - 1)",
            ),
            ("drop a document with a single known paragraph", "share <= 0.5", "share <= 0"),
            ("take blank documents", "if text and not text.isspace()", "if text"),
            (
                "cut a document within white space",
                "while end > 0 and text[end - 1].isspace():",
                "while False:",
            ),
        ),
    ),
    (
        "data/tokenizers.py",
        ("tests/data/test_counts.py",),
        (
            (
                "take the number of tokens for the vocabulary",
                "max(tokenizer.get_vocab().values()) + 1",
                "len(tokenizer)",
            ),
        ),
    ),
    (
        "data/tokenizers.py",
        ("tests/data/test_splits.py", "tests/data/test_rows.py", "tests/data/test_reading.py"),
        (
            (
                "read special tokens that a text spells out",
                "split_special_tokens=True",
                "split_special_tokens=False",
            ),
        ),
    ),
    (
        "data/tokenizers.py",
        ("tests/data/test_tokenizers.py",),
        (
            (
                "take EOS for BOS where there is [CLS]",
                "tokenizer.cls_token or tokenizer.eos_token",
                "tokenizer.eos_token",
            ),
            (
                "leave a padding token that is the end",
                "tokenizer.pad_token is None or tokenizer.pad_token_id in (*taken, "
                "tokenizer.mask_token_id)",
                "tokenizer.pad_token is None",
            ),
        ),
    ),
    (
        "training/trainer.py",
        ("tests/training/test_step_loss.py",),
        (
            (
                "never reset the loss of a step",
                "            self._step_loss, self._step_is_clean = 0.0, True\n        return loss",
                "            self._step_is_clean = True\n        return loss",
            ),
        ),
    ),
    (
        "training/trainer.py",
        (
            "tests/training/test_trainer.py::test_evaluation_is_the_order_bound_of_the_average_on_fixed_draws_for_any_batch_size",
        ),
        (
            (
                "give every batch of evaluation the draws of the first",
                ("first = (\n            step * self.accelerator"),
                "first = (0 * self.accelerator",
            ),
        ),
    ),
    (
        "modeling/modeling_lomdm.py",
        (
            "tests/training/test_trainer.py::test_evaluation_without_order_has_equal_rates_and_restores_the_learned_ones",
        ),
        (
            (
                "leave the order away after evaluating without it",
                "            self.rate_law = own\n",
                "            pass\n",
            ),
        ),
    ),
    (
        "training/trainer.py",
        (
            "tests/training/test_trainer.py::test_four_accumulated_batches_of_two_equal_one_batch_of_eight",
        ),
        (
            (
                "give every micro-step the draws of the first",
                "first = (micro_step * ranks + self",
                "first = (0 * ranks + self",
            ),
        ),
    ),
    (
        "training/trainer.py",
        (
            "tests/training/test_trainer_optimizer.py::test_rates_of_the_vocabulary_have_the_learning_rate_of_the_backbone_and_no_decay",
        ),
        (("decay omega", (' if "omega" not in name.split(".")\n        ]'), "]"),),
    ),
    (
        "training/trainer.py",
        (
            "tests/training/test_trainer.py::test_special_tokens_of_the_model_are_not_taken_over_from_the_tokenizer",
        ),
        (
            (
                "let the Trainer set the special tokens",
                "setattr(self.model.config, name, own)",
                "pass",
            ),
        ),
    ),
    (
        "training/trainer.py",
        (
            "tests/training/test_trainer_average.py::test_the_best_model_comes_back_with_its_average",
        ),
        (
            (
                "leave the average of the last step beside the best weights",
                "self.ema.load(Path(self.state.best_model_checkpoint) / AVERAGE)",
                "pass",
            ),
        ),
    ),
    (
        "training/trainer.py",
        (
            "tests/training/test_trainer.py::test_the_card_says_what_was_measured_on_these_weights_and_gives_way_to_one_written_by_hand",
        ),
        (
            (
                "keep what was measured before a step",
                "        self.measured = {}\n        if self.ema is not None:\n            "
                "self.ema.update",
                "        if self.ema is not None:\n            self.ema.update",
            ),
        ),
    ),
    (
        "training/training_log.py",
        (
            "tests/training/test_trainer.py::test_logged_terms_equal_the_bound_of_the_global_batch",
            "tests/training/test_trainer.py::test_logged_terms_are_means_over_the_steps_of_a_window",
        ),
        (
            ("average the gradient of phi over texts", 'max(values["steps"], 1)', "texts"),
            ("take the mean square for the variance of scores", " - mean**2", ""),
            (
                "never reset the sums of the log",
                "set(self._sums), {}",
                "set(self._sums), self._sums",
            ),
        ),
    ),
    (
        "evaluation/summary.py",
        (
            "tests/training/test_trainer.py::test_logged_terms_equal_the_bound_of_the_global_batch",
            "tests/training/test_trainer.py::test_logged_terms_are_means_over_the_steps_of_a_window",
            "tests/evaluation/test_order.py",
        ),
        (
            (
                "count masked-out positions in a spread",
                "mask.sum(-1, keepdim=True).clamp(min=1)",
                "mask.sum(-1, keepdim=True).clamp(min=mask.shape[-1])",
            ),
        ),
    ),
    (
        "visualization/html.py",
        ("tests/visualization/test_html.py",),
        (
            (
                "write white on yellow",
                'return "#000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) '
                'else "#fff"',
                'return "#fff"',
            ),
        ),
    ),
    (
        "visualization/picture.py",
        ("tests/visualization/test_picture.py",),
        (("break lines a character late", "> columns:", "> columns + 1:"),),
    ),
    (
        "visualization/plots.py",
        ("tests/visualization/test_plots.py",),
        (
            ("draw a band of half an error", "[v + sign * e for", "[v + sign * e / 2 for"),
            (
                "draw rates as counts",
                "[count / total for count in counts], edges, color=colour, label",
                "list(counts), edges, color=colour, label",
            ),
        ),
    ),
    (
        "visualization/terminal.py",
        ("tests/visualization/test_html.py", "tests/visualization/test_terminal.py"),
        (("leave marks of direction in a text", "*map(ord, DIRECTIONS), ", ""),),
    ),
    (
        "visualization/terminal.py",
        ("tests/visualization/test_terminal.py",),
        (
            (
                "show a token one step late",
                "token if step <= last else",
                "token if step < last else",
            ),
            (
                "let given tokens take the first colour",
                "token if step < 0 else",
                "token if step < -9 else",
            ),
        ),
    ),
)
MORE = tuple(
    (name, file, old, new, tests) for file, tests, rows in TABLE for name, old, new in rows
)
