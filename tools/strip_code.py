r"""Turns an exported Hub folder into a checkpoint of this repository, without code.

    python training_scripts/export_to_hub.py --model outputs/enwiki \
        --output checkpoints/lomdm-enwiki --dtype bfloat16
    python tools/strip_code.py checkpoints/lomdm-enwiki

The code stands in `src/hf_lomdm`; `make hub-folders` writes the Hub folder of every checkpoint with
its code again.
"""

import argparse
import json
import shutil
from pathlib import Path


def strip_code(folder: Path) -> None:
    """Removes the code of a Hub folder and what names it; the package loads the rest as before."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    for path in folder.rglob("*.py"):
        path.unlink()
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "model_index.json").unlink(missing_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="+", help="written by export_to_hub.py")
    for folder in parser.parse_args().folder:
        if not (folder / "config.json").is_file():
            parser.error(f"{folder} has no config.json. Pass a folder that export_to_hub.py wrote.")
        strip_code(folder)


if __name__ == "__main__":
    main()
