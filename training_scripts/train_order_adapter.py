r"""Trains order heads on a frozen masked language model, which stays as it is.

python training_scripts/train_order_adapter.py --base answerdotai/ModernBERT-base \
        --train_file text.txt --output_dir outputs/order-adapter
"""

from hf_lomdm.cli.train_order_adapter import main

if __name__ == "__main__":
    main()
