"""The statistics of test molecules that MOSES publishes, as a file for `evaluate.py molecules`.

    python studies/moses/published_statistics.py test_stats.npz moses.test.npz

They save reading 176,074 molecules by ChemNet. `test_stats.npz` comes with the package `molsets`
and holds pickled objects: read it only if you trust where it is from.
"""

import argparse

import numpy as np

from hf_lomdm.evaluation.molecule_reference import Reference

PUBLISHED = ("logP", "SA", "QED", "weight")  # in the order of `PROPERTIES`


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("published")
    parser.add_argument("output")
    options = parser.parse_args()
    convert(np.load(options.published, allow_pickle=True)["stats"].item()).save(options.output)


def convert(stats: dict) -> Reference:
    """Published statistics as ours: bits are packed from the lowest, as RDKit writes them."""
    chemnet = stats["FCD"]
    return Reference(
        fingerprints=np.packbits(np.asarray(stats["SNN"]["fps"]), axis=1, bitorder="little"),
        properties=np.stack([np.asarray(stats[name]["values"]) for name in PUBLISHED], axis=1),
        fragments=stats["Frag"]["frag"],
        scaffolds=stats["Scaf"]["scaf"],
        chemnet=(np.asarray(chemnet["mu"]), np.asarray(chemnet["sigma"])),
    )


if __name__ == "__main__":
    main()
