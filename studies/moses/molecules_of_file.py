"""The measures of MOSES for molecules of a file, such as training molecules: the best there is.

python studies/moses/molecules_of_file.py moses.train.txt --num_samples 30000 \
        --reference moses.test.npz --scaffold_reference moses.test_scaffolds.npz --output train.json
"""

import argparse
import random
from pathlib import Path

from hf_lomdm.evaluation.molecule_reference import read_smiles, reference_of
from hf_lomdm.evaluation.molecules import describe_samples, measure_molecules
from hf_lomdm.evaluation.records import write_record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--num_samples", type=int, default=30_000, help="drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--scaffold_reference", required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    smiles = read_smiles(options.file)
    chosen = random.Random(options.seed).sample(smiles, options.num_samples)
    sets = {"test": options.reference, "scaffolds": options.scaffold_reference}
    references = {name: reference_of(path) for name, path in sets.items()}
    parts = options.output + ".parts.jsonl"
    record = measure_molecules(describe_samples(chosen, parts), references)
    about = {"file": Path(options.file).name, "num_samples": options.num_samples}
    write_record(options.output, {"task": "molecules", **about, "seed": options.seed, **record})
    Path(parts).unlink()


if __name__ == "__main__":
    main()
