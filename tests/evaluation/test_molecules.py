"""Molecules: descriptors against published values, measures by hand, the command, bad input."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import build_model
from hf_lomdm.cli import evaluate
from hf_lomdm.data.tokenizers import special_token_ids, train_tokenizer
from hf_lomdm.evaluation import molecule_descriptors
from hf_lomdm.evaluation.corpus import evaluate_corpus
from hf_lomdm.evaluation.molecule_descriptors import canonical, describe, parse, passes_filters
from hf_lomdm.evaluation.molecule_reference import (
    Reference,
    hashes,
    known_molecules,
    read_smiles,
    reference_of,
    summarise,
)
from hf_lomdm.evaluation.molecules import (
    describe_samples,
    measure_molecules,
    molecule_likelihood,
    molecule_rows,
)
from hf_lomdm.evaluation.order import evaluate_order
from hf_lomdm.evaluation.token_classes import SmilesClasses

ROOT = Path(__file__).parents[2]
ALPHABET = "BCFHNOSclnors()[]=#-123456"
# Eight molecules with logP, SA, QED, weight, bits of the fingerprint and scaffold as MOSES
# publishes them for its test set.
GOLDEN = [
    "CC1C2CCC(C2)C1CN(CCO)C(=O)c1ccc(Cl)cc1 3.4567 4.128087 0.901948 321.848 40 24480 "
    "O=C(NCC1CC2CCC1C2)c1ccccc1",
    "COc1ccc(-c2cc(=O)c3c(O)c(OC)c(OC)cc3o2)cc1O 2.897 2.371637 0.750638 344.319 41 22554 "
    "O=c1cc(-c2ccccc2)oc2ccccc12",
    "CCOC(=O)c1ncn2c1CN(C)C(=O)c1cc(F)ccc1-2 1.7737 2.528453 0.793248 303.293 49 26591 "
    "O=C1NCc2cncn2-c2ccccc21",
    "Clc1ccccc1-c1nc(-c2ccncc2)no1 3.452 1.914809 0.705513 257.68 31 15889 "
    "c1ccc(-c2nc(-c3ccncc3)no2)cc1",
    "CC(C)(Oc1ccc(Cl)cc1)C(=O)OCc1cccc(CO)n1 3.1281 2.255334 0.821308 335.787 41 18788 "
    "O=C(COc1ccccc1)OCc1ccccn1",
    "Cc1nc2c(OCc3ccccc3)cccn2c1CC#N 3.2878 2.268784 0.734952 277.327 41 19959 "
    "c1ccc(COc2cccn3ccnc23)cc1",
    "O=C1c2cccnc2CN1Cc1ccccc1Cl 2.891 2.09751 0.829887 258.708 37 20276 O=C1c2cccnc2CN1Cc1ccccc1",
    "O=C(NC1CCc2ccccc2C1)c1ccncc1 2.3689 2.336589 0.891213 252.317 35 18264 "
    "O=C(NC1CCc2ccccc2C1)c1ccncc1",
]
SMILES = [row.split()[0] for row in GOLDEN]


@pytest.fixture
def rdkit():
    return pytest.importorskip("rdkit")


pytestmark = pytest.mark.usefixtures("fresh_cache")


def build(alphabet: str = ALPHABET, length: int = 12, **overrides):
    """A tiny model of SMILES that reads rows filled up with EOS, and its tokenizer."""
    tokenizer = train_tokenizer("char", [alphabet])
    ids = special_token_ids(tokenizer) | {"bos_token_id": None}
    return build_model(max_position_embeddings=length, **ids, **overrides), tokenizer


# ------------------------------------------------------------------------------------- descriptors


@pytest.mark.parametrize("row", GOLDEN)
def test_a_molecule_has_the_published_descriptors(rdkit, row):
    smiles, log_p, sa, qed, weight, bits, places, scaffold = row.split()
    found = describe(smiles)
    values = [found.log_p, found.sa, found.qed, found.weight]
    assert values == pytest.approx([float(value) for value in (log_p, sa, qed, weight)], abs=2e-6)
    packed = np.frombuffer(bytes.fromhex(found.fingerprint), dtype=np.uint8)
    on = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
    assert (len(on), on.sum()) == (int(bits), int(places))
    assert (found.smiles, found.scaffold) == (smiles, scaffold) and found.passes_filters


def test_fragments_are_those_of_rdkits_own_fragmenter(rdkit):
    from rdkit import Chem
    from rdkit.Chem.rdMolDescriptors import CalcNumRings
    from rdkit.Chem.rdmolops import FragmentOnBRICSBonds

    for smiles in [*SMILES, "C", "c1ccccc1"]:
        whole = Chem.MolToSmiles(FragmentOnBRICSBonds(parse(smiles)))
        assert Counter(describe(smiles).fragments) == Counter(whole.split("."))
    assert describe("c1ccccc1").scaffold is None and CalcNumRings(parse("c1ccccc1")) == 1


@pytest.mark.parametrize(
    "smiles, reason",
    [
        ("C[N+](C)(C)C", "charge"),
        ("C1CCCCCCC1", "a ring of eight"),
        ("CCI", "an element"),
        ("CC=O", "an aldehyde, of the medicinal-chemistry filters"),
        ("C1CO1", "an epoxide, of the medicinal-chemistry filters"),
        ("O=C1C=CC(=O)C=C1", "a quinone, of PAINS"),
        ("c1ccc(N=Nc2ccccc2)cc1", "an azo compound"),
    ],
)
def test_filters_stop_what_they_name(rdkit, smiles, reason):
    assert not passes_filters(parse(smiles)), reason
    assert passes_filters(parse("CCO")) and not passes_filters(parse(smiles))


def test_what_is_no_molecule_is_none_and_prints_nothing(rdkit, capfd):
    for text in ("", "  ", "C1CC", "C(C", "c1cccc1", "CC(C)(C)(C)C", "xyz", "[nH"):
        assert parse(text) is None and canonical(text) is None and describe(text) is None
    assert capfd.readouterr().err == ""
    assert canonical("C1=CC=CC=C1") == canonical("c1ccccc1") == "c1ccccc1"


# ---------------------------------------------------------------------------------------- measures


def test_measures_of_a_few_samples_by_hand(rdkit):
    samples = ["CCO", "OCC", "C1CC", "CCN", "", "CC=O", "CCO", "CCCC"]
    reference = summarise([describe(one) for one in ("CCO", "CCC", "CCCCC")], fcd=False)
    known = np.sort(hashes([canonical("CCN"), canonical("CCCC")]))
    record = measure_molecules(describe_samples(samples), {"test": reference}, known, fcd=False)
    measures = {name: one["value"] for name, one in record["measures"].items()}
    assert record["value"] == 6 / 8 and record["n"] == 8
    assert measures["unique"] == 4 / 6 and measures["unique@1k"] is None
    assert measures["novelty"] == 2 / 4 and measures["filters"] == 5 / 6
    assert measures["test: scaf"] == 0 and 0 < measures["test: snn"] < 1
    weights = [describe(one).weight for one in samples if describe(one)]
    theirs = np.sort(np.repeat([describe(one).weight for one in ("CCO", "CCC", "CCCCC")], 2))
    assert measures["W1 weight"] == pytest.approx(np.abs(np.sort(weights) - theirs).mean())
    assert all(
        one["standard_error"] >= 0 for name, one in record["measures"].items() if "@" not in name
    )


def test_molecules_of_the_reference_are_at_no_distance_from_it(rdkit):
    molecules = [describe(one) for one in SMILES]
    record = measure_molecules(molecules, {"test": summarise(molecules, fcd=False)}, fcd=False)
    values = {name: one["value"] for name, one in record["measures"].items()}
    assert values["test: snn"] == values["unique"] == values["filters"] == 1
    assert values["test: frag"] == pytest.approx(1) == values["test: scaf"]
    assert [values[f"W1 {name}"] for name in ("log_p", "sa", "qed", "weight")] == [0] * 4
    assert "novelty" not in values and 0.5 < values["int_div"] < 1


def test_unique_of_the_first_thousand_counts_these_alone(rdkit):
    samples = ["C" * (1 + i % 50) for i in range(1000)] + ["C" * (60 + i) for i in range(30)]
    described = describe_samples(samples, progress=False)
    reference = summarise([describe("CC"), describe("CCC")], fcd=False)
    measures = measure_molecules(described, {"test": reference}, fcd=False)["measures"]
    assert measures["unique@1k"]["value"] == 50 / 1000
    assert measures["unique"]["value"] == 80 / 1030


def test_too_few_molecules_are_refused(rdkit):
    reference = summarise([describe("CC"), describe("CCC")], fcd=False)
    with pytest.raises(ValueError, match="1 of 3 samples are molecules.* Train for longer"):
        measure_molecules(describe_samples(["C", "(", "1"]), {"test": reference}, fcd=False)
    with pytest.raises(ValueError, match="at least 2, got 1. Pass more"):
        summarise([describe("C")], fcd=False)


def test_described_samples_are_not_described_again(rdkit, tmp_path, monkeypatch):
    from hf_lomdm.evaluation import molecules

    first = describe_samples(["CCO", "C(", "CCO"], tmp_path / "parts.jsonl", progress=False)
    monkeypatch.setattr(molecules, "describe", None)
    assert describe_samples(["CCO", "C(", "CCO"], tmp_path / "parts.jsonl", progress=False) == first
    assert first[0] == first[2] == describe("CCO") and first[1] is None
    with pytest.raises(ValueError, match="belongs to another evaluation"):
        describe_samples(["CCN"], tmp_path / "parts.jsonl", progress=False)


def test_chemnet_reads_as_in_its_package(rdkit):
    pytest.importorskip("fcd_torch")
    from hf_lomdm.evaluation.chemnet import activations

    # of `fcd_torch.FCD().get_predictions`, the first three of the first three molecules
    expected = [
        [-0.09534, 0.00581, -0.08197],
        [-0.42407, 0.0421, -0.03509],
        [0.48259, 0.0017, -0.12931],
    ]
    ours = activations(SMILES, batch_size=3, progress=False)
    assert ours.shape == (8, 512)
    assert ours[:3, :3] == pytest.approx(np.array(expected), abs=2e-4)


def test_the_distance_by_chemnet_is_measured_to_each_reference(rdkit):
    pytest.importorskip("fcd_torch")
    molecules = [describe(one) for one in SMILES]
    sets = {
        "test": summarise(molecules, fcd=True, progress=False),
        "scaffolds": summarise(molecules[:4], fcd=True, progress=False),
    }
    measures = measure_molecules(molecules, sets, progress=False)["measures"]
    assert measures["test: fcd"]["value"] == pytest.approx(0, abs=1e-4)
    assert measures["scaffolds: fcd"]["value"] > 1


# ------------------------------------------------------------------------------------ likelihoods


def test_rows_are_filled_with_eos_and_their_likelihood_is_of_molecules():
    model, tokenizer = build("CO", length=6)
    eos = tokenizer.eos_token_id
    rows = molecule_rows(["CO", "CCC"], tokenizer, model)
    encoded = [tokenizer(text)["input_ids"] for text in ("CO", "CCC")]
    assert [row["input_ids"].tolist() for row in rows] == [
        encoded[0] + [eos] * 4,
        encoded[1] + [eos] * 3,
    ]
    record = molecule_likelihood(["CO", "CCC"], tokenizer, model, num_samples=4, progress=False)
    tokens = evaluate_corpus(model, rows, num_samples=4, progress=False)
    assert record["unit"] == "nats per molecule"
    for name in ("value", "standard_error", "monte_carlo_error"):
        assert record[name] == pytest.approx(6 * tokens[name])


def test_kinds_of_the_characters_of_smiles():
    _, tokenizer = build()
    ids = torch.tensor([tokenizer("C[nH]=(1)#-l")["input_ids"] + [tokenizer.eos_token_id]])
    classes = SmilesClasses(tokenizer, max(tokenizer.get_vocab().values()) + 1)
    kinds = [classes.names[kind] for kind in classes(ids)[0].tolist()]
    assert kinds == [
        *("atom", "bracket", "atom", "atom", "bracket", "bond", "branch", "ring digit"),
        *("branch", "bond", "bond", "atom", "end"),
    ]


def test_order_statistics_by_kind_of_character():
    model, tokenizer = build(length=8)
    rows = molecule_rows(["C1CC1", "CC=O"], tokenizer, model)
    options = {"num_samples": 1, "num_generated": 2, "progress": False}
    record = evaluate_order(model, rows, tokenizer=tokenizer, classes=SmilesClasses, **options)
    ranks = record["forward"]["rank_by_class"]
    assert ranks.keys() == {"atom", "bond", "ring digit", "end"}


def test_molecules_that_the_model_cannot_read_are_named():
    model, tokenizer = build("CO", length=6)
    with pytest.raises(ValueError, match="7 characters is longer than the 6 positions.*CCCCCCC"):
        molecule_rows(["CO", "CCCCCCC"], tokenizer, model)
    with pytest.raises(ValueError, match=r"does not know \['N', '\['\] of the SMILES"):
        molecule_rows(["CO[N"], tokenizer, model)
    model.config.eos_token_id = None
    with pytest.raises(ValueError, match="has no EOS.*fill_with_eos"):
        molecule_rows(["CO"], tokenizer, model)


# ------------------------------------------------------------------------------------------- files


def test_statistics_of_a_reference_survive_their_file(rdkit, tmp_path):
    file = tmp_path / "test.txt"
    file.write_text("\n".join(SMILES) + "\n\n")
    made = reference_of(file, fcd=False, progress=False)
    made.save(tmp_path / "test.npz")
    for one in (reference_of(file, False, False), reference_of(tmp_path / "test.npz", False)):
        assert (one.fingerprints == made.fingerprints).all() and one.chemnet is None
        assert (one.properties == made.properties).all()
        assert (one.fragments, one.scaffolds) == (made.fragments, made.scaffolds)
    with pytest.raises(ValueError, match="knows nothing of ChemNet.*--no_fcd"):
        reference_of(tmp_path / "test.npz")


def test_a_reference_without_scaffolds_has_none_after_its_file(rdkit, tmp_path):
    made = summarise([describe("CC"), describe("CCC")], fcd=False)
    made.save(tmp_path / "small.npz")
    assert Reference.load(tmp_path / "small.npz").scaffolds == made.scaffolds == Counter()


def test_the_cache_spares_the_second_reading(rdkit, tmp_path, monkeypatch):
    from hf_lomdm.evaluation import molecule_reference

    file = tmp_path / "train.csv"
    file.write_text("SMILES,SPLIT\nOCC,train\nCCN,train\nCCO,train\n")
    known = known_molecules(file, progress=False)
    assert known.tolist() == sorted(hashes(["CCO", "CCN"]).tolist())
    monkeypatch.setattr(molecule_reference, "canonical", None)
    assert (known_molecules(file, progress=False) == known).all()
    assert read_smiles(file) == ["OCC", "CCN", "CCO"]


def test_broken_files_are_named_with_what_is_wrong(rdkit, tmp_path):
    broken, empty = tmp_path / "broken.txt", tmp_path / "empty.txt"
    broken.write_text("CCO\nC1CC\n")
    empty.write_text("\n")
    for read in (known_molecules, reference_of):
        with pytest.raises(ValueError, match="broken.txt, molecule 2: .* no molecule in 'C1CC'"):
            read(broken, progress=False)
        with pytest.raises(ValueError, match="empty.txt ha?o?l?d?s no"):
            read(empty, progress=False)
    fake = tmp_path / "fake.npz"
    fake.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="fake.npz holds no statistics of molecules"):
        reference_of(fake)


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def script():
    return evaluate


@pytest.fixture
def command(script, tmp_path):
    """Words that measure a tiny model which writes chains of C and O."""
    model, tokenizer = build("CO", length=6)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "test.txt").write_text("CCO\nCCCO\nCC\nOCCO\n")
    words = ["molecules", "--model", str(tmp_path / "model"), "--no_fcd", "--quiet"]
    words += ["--reference", str(tmp_path / "test.txt"), "--num_samples", "24"]
    return [*words, "--output", str(tmp_path / "record.json")]


def test_the_command_writes_a_record_with_all_measures(rdkit, script, command, tmp_path, capsys):
    test = str(tmp_path / "test.txt")
    script.main([*command, "--scaffold_reference", test, "--train_file", test, "--file", test])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["task"] == "molecules" and record["n"] == 24 and record["reference"] == "test.txt"
    assert {"novelty", "test: snn", "scaffolds: frag", "W1 qed"} <= record["measures"].keys()
    assert record["likelihood"]["n"] == 4 and "rank_by_class" in record["order"]["forward"]
    assert record["forward_passes"] == record["num_inference_steps"] == 6
    assert not (tmp_path / "record.json.parts").exists()
    out = capsys.readouterr().out
    assert "share of valid molecules" in out and "measures novelty" in out and "+-" in out


def test_an_interrupted_command_goes_on_with_what_it_wrote(
    rdkit, script, command, tmp_path, monkeypatch
):
    from hf_lomdm.evaluation import molecules

    script.main(command)
    whole = json.loads((tmp_path / "record.json").read_text())
    (tmp_path / "record.json").unlink()

    def stop(*_, **__):
        raise ValueError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(molecules, "describe", stop)
        with pytest.raises(SystemExit):
            script.main(command)
    assert (tmp_path / "record.json.parts" / "samples.jsonl").exists()
    with monkeypatch.context() as patch:
        patch.setattr("hf_lomdm.evaluation.generation.step_generators", stop)
        script.main(command)
    again = json.loads((tmp_path / "record.json").read_text())
    assert again["measures"] == whole["measures"] and again["value"] == whole["value"]


@pytest.mark.parametrize(
    "missing, message",
    [
        ("rdkit", "RDKit, which is not installed. Run pip install 'hf-lomdm\\[molecules\\]'"),
        ("fcd_torch", "needs fcd-torch, which is not installed.*or pass --no_fcd"),
    ],
)
def test_a_missing_package_is_one_line(script, command, monkeypatch, missing, message):
    find = importlib.util.find_spec

    def find_spec(name, *rest):
        there = name == "rdkit" and missing != "rdkit"  # the other may be missing here too
        return True if there else None if name in ("rdkit", "fcd_torch") else find(name, *rest)

    monkeypatch.setattr(molecule_descriptors.importlib.util, "find_spec", find_spec)
    words = [word for word in command if word != "--no_fcd"] if missing == "fcd_torch" else command
    with pytest.raises(SystemExit, match=message):
        script.main(words)


def test_a_reference_that_is_not_there_is_named(script, command, tmp_path):
    (tmp_path / "test.txt").unlink()
    with pytest.raises(SystemExit, match="--reference .*test.txt does not exist"):
        script.main(command)
