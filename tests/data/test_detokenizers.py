"""Detokenizers on sentences as they stand in the corpora."""

import pytest

from hf_lomdm.data.detokenizers import DETOKENIZERS, get_detokenizer


@pytest.mark.parametrize(
    "name, text, expected",
    [
        (
            "lm1b",
            "But now , it 's clear that he won 't talk .",
            "But now, it's clear that he won't talk.",
        ),
        (
            "lm1b",
            'They called it " kickbacks , " he said .',
            'They called it "kickbacks," he said.',
        ),
        ("lm1b", '" Why ? " she asked : " Tell me ! "', '"Why?" she asked: "Tell me!"'),
        (
            "lm1b",
            "It cost $ 2,900 ( about £ 1,500 ) [ or more ] .",
            "It cost $2,900 (about £1,500) [or more].",
        ),
        (
            "lm1b",
            "See http : / / www.example.org and / or call .",
            "See http://www.example.org and/or call.",
        ),
        ("lm1b", "It rained ; we stayed -- inside .", "It rained; we stayed -- inside."),
        ("lm1b", "Version 1 .5 of the paper .", "Version 1 .5 of the paper."),
        ("ptb", "it did n't say <unk> 's $ N N N cost # N", "it didn't say ?'s $1 1 1 cost #1"),
        ("ptb", "NBC bought N shares in N", "NBC bought 1 shares in 1"),
        ("lm1b", '" Yes " , he said , " no " ; " ( so ) " .', '"Yes", he said, "no"; "(so)".'),
        ("lm1b", "from € 5 , $ 5 or £ 5 to 7 €", "from €5, $5 or £5 to 7 €"),
        ("lm1b", "$ a and € b stay , 5 € 6 too", "$ a and € b stay, 5 €6 too"),
        ("ptb", "N", "1"),
        ("ptb", "N years , Nth , CNN , N-N , N.", "1 years , Nth , CNN , N-N , N."),
        ("ptb", "from N to\nN\n", "from 1 to\n1\n"),
        ("wikitext", " N of the N stay N \n N \n", " 1 of the 1 stay N \n N \n"),
        ("wikitext", " = = Weight @-@ loss = = \n", " == Weight-loss == \n"),
        (
            "wikitext",
            " about 1 @,@ 500 kg ( 1 @.@ 5 t ) , or more . \n",
            " about 1,500 kg (1.5 t), or more. \n",
        ),
        ("wikitext", " the state 's dogs ' home \n", " the state's dogs' home \n"),
        (
            "wikitext",
            ' he wrote " yes : no ; maybe " in N words \n',
            ' he wrote "yes: no; maybe" in 1 words \n',
        ),
        ("wikitext", " at 5 ° C \n", " at 5° C \n"),
        ("lambada", " “ where ? ” he asked \n", '\n" where ? " he asked'),
    ],
)
def test_corpus_text_becomes_plain_text(name, text, expected):
    assert get_detokenizer(name)(text) == expected


@pytest.mark.parametrize("name", DETOKENIZERS)
def test_plain_prose_keeps_its_words(name):
    text = "A plain sentence, with a comma; (brackets) and it's done."
    assert DETOKENIZERS[name](text).strip() == text


def test_an_unknown_name_lists_the_known_ones():
    assert get_detokenizer(None) is None
    with pytest.raises(
        ValueError, match="detokenizer must be one of lm1b, ptb, wikitext, lambada.*got 'lm2b'"
    ):
        get_detokenizer("lm2b")


def test_single_quotes_close_in_front_of_punctuation_too():
    lm1b = get_detokenizer("lm1b")
    assert lm1b("he said ' yes ' , then ' no ' .") == "he said 'yes', then 'no'."
