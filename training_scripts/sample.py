"""Writes text with a model and shows in which order it was written.

    python training_scripts/sample.py --model outputs/tiny --max_length 128 --show_order

The same as `lomdm sample`.
"""

from hf_lomdm.cli.sample import main

if __name__ == "__main__":
    main()
