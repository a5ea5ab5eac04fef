r"""Turns a public MDLM or BD3-LM checkpoint into a model folder of this family.

    python training_scripts/convert_checkpoint.py --checkpoint mdlm-owt \
        --output converted/mdlm-owt --tokenizer gpt2

The same as `lomdm convert`.
"""

from hf_lomdm.cli.convert import main

if __name__ == "__main__":
    main()
