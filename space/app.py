"""A page on which LoMDMs write; the Hub starts this file by itself.

    python space/app.py --model checkpoints/lomdm-enwiki

The same as `lomdm space`. In a Space, the variable MODEL names the models.
"""

from hf_lomdm.cli.space import main

if __name__ == "__main__":
    main()
