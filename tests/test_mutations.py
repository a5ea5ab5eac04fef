"""The tests notice when the library is broken (tools/mutations.py)."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import mutations  # noqa: E402

BY_NAME = {mutation.name: mutation for mutation in mutations.MUTATIONS}


def test_every_mutation_has_a_name_of_its_own():
    assert len(BY_NAME) == len(mutations.MUTATIONS)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_mutation_still_fits_the_source(name):
    mutation = BY_NAME[name]
    text = (mutations.ROOT / "src" / "hf_lomdm" / mutation.file).read_text(encoding="utf-8")
    assert mutations.mutate(text, mutation) != text


@pytest.mark.parametrize("name", BY_NAME)
def test_the_tests_that_must_notice_a_mutation_exist(name):
    for test in BY_NAME[name].tests:
        file, _, function = test.partition("::")
        assert f"def {function}" in (mutations.ROOT / file).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("text, count", [("", 0), ("a = 1\na = 1\n", 2)])
def test_a_mutation_that_does_not_fit_is_an_error(text, count):
    mutation = mutations.Mutation("change a", "x.py", "a = 1", "a = 2", ())
    with pytest.raises(ValueError, match=f"'change a': its text occurs {count} times in x.py"):
        mutations.mutate(text, mutation)


@pytest.mark.slow
def test_without_a_mutation_the_tests_pass():
    tests = {test for mutation in mutations.MUTATIONS for test in mutation.tests}
    assert mutations.failing_tests(tuple(sorted(tests))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_every_mutation_is_killed(name):
    assert mutations.failing_tests(BY_NAME[name].tests, BY_NAME[name]), f"{name} survived"
