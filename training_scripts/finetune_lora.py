r"""Fine-tunes on prompts and answers, with LoRA or in full: prompts are given.

    python training_scripts/finetune_lora.py --model checkpoints/lomdm-enwiki \
        --train_file pairs.jsonl --output_dir outputs/pairs --max_steps 50

The same as `lomdm finetune`, whose file says more.
"""

from hf_lomdm.cli.finetune import main

if __name__ == "__main__":
    main()
