"""Trains a model of the family on text: LoMDM, MDLM, SEDD, BD3-LM, GenMD4, blocks, or AR.

    accelerate launch training_scripts/train.py --config training_scripts/configs/owt.yaml
    python training_scripts/train.py --config training_scripts/configs/tiny.yaml

The same as `lomdm train`, whose file says more, for `accelerate launch` and `torchrun`.
"""

from hf_lomdm.cli.train import main

if __name__ == "__main__":
    main()
