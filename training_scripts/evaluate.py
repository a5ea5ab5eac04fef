"""Measures a model: likelihood, zero-shot likelihood, generation, order, Sudoku, molecules.

    python training_scripts/evaluate.py likelihood --model outputs/tiny --file valid.txt

The same as `lomdm evaluate`, whose file says more, for `accelerate launch` and `torchrun`.
"""

from hf_lomdm.cli.evaluate import main

if __name__ == "__main__":
    main()
