"""Turns a checkpoint into a folder for the Hub, and uploads it if asked to.

    python training_scripts/export_to_hub.py --model outputs/tiny --output export/lomdm-tiny

The same as `lomdm export`.
"""

from hf_lomdm.cli.export import main

if __name__ == "__main__":
    main()
