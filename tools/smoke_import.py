"""Imports every module and public name of hf_lomdm: `python tools/smoke_import.py`.

Run it outside the repository, in an environment that holds the built wheel and none of the extras:
it fails where a module or a file that is none (styles, scripts, templates) is missing from the
wheel, needs something that a plain installation lacks, or advertises a name it has not.
"""

import argparse
import importlib
import pkgutil
import sys
import sysconfig
from pathlib import Path

# What only an extra provides: the model type of lm-eval needs lm-eval, the page gradio.
NEED_EXTRAS = {
    "hf_lomdm.evaluation.lm_eval_adapter",
    *(f"hf_lomdm.cli.{name}" for name in ("space", "space_gate", "space_page")),
}


def public_names(module_name: str) -> list[str]:
    """Import `module_name` and every name in its `__all__`; returns them as dotted names."""
    module = importlib.import_module(module_name)
    names = getattr(module, "__all__", [])
    for name in names:
        getattr(module, name)
    return [f"{module_name}.{name}" for name in names]


def use_package_data() -> None:
    """Makes a page and a card, which are put together from files that are no modules."""
    html = importlib.import_module("hf_lomdm.visualization.html")
    cards = importlib.import_module("hf_lomdm.training.model_card")
    html.order_page([html.text_element(["text"], [0], "label")], "title")
    cards.model_card("name", cards.describe_causal(), cards.TrainingRecord(0, {}))


def main() -> None:
    """Import everything and print how much; fails where the package is not the installed one."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    package = importlib.import_module("hf_lomdm")
    installed = Path(sysconfig.get_paths()["purelib"]).resolve()
    if installed not in Path(package.__file__).resolve().parents:
        sys.exit(
            f"hf_lomdm was imported from {package.__file__}, not from {installed}: install the "
            "wheel first."
        )
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "hf_lomdm.")]
    modules = ["hf_lomdm", *(name for name in names if name not in NEED_EXTRAS)]
    top, *others = [public_names(name) for name in modules]
    if not top:
        sys.exit("hf_lomdm.__all__ is empty: the package has no public names.")
    use_package_data()
    print(
        f"imported {len(modules)} modules and {len(top) + sum(map(len, others))} public names of "
        f"{package.__file__}"
    )


if __name__ == "__main__":
    main()
