# ruff: noqa: E501
"""Every kind of IFEval's instructions, with texts that follow it and texts that do not."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.rewards.ifeval.language import LANGUAGES, language_of
from verst.runtime.rewards.ifeval.registry import INSTRUCTIONS, arguments_of
from verst.runtime.rewards.ifeval.reward import ifeval
from verst.runtime.rewards.ifeval.words import sentences

# Instruction, arguments, texts that follow it, texts that do not.
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["cat", "Dog"]}, ["a Cat and dogs"], ["a cat", ""]),
    ("keywords:frequency", {"keyword": "yes", "frequency": 2, "relation": "at least"}, ["Yes, yes", "yesyes"], ["yes"]),
    ("keywords:frequency", {"keyword": "yes", "frequency": 2, "relation": "less than"}, ["yes", "no"], ["yes yes"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "c++"]}, ["concatenate", "c+"], ["A CAT.", "I use C++!"]),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, ["Q q"], ["q"]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 1, "let_relation": "less than"}, ["a"], ["# a"]),
    ("language:response_language", {"language": "de"}, ["Das ist ein Haus und nicht mehr."], ["This is a house."]),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"},
     ["One. Two! Three?", 'He said "no." Then he left. Dr. Who came.'], ["One. Two!", "Mr. A. Smith paid 3.50 e.g. here."]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["One, two"], ["One. Two."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***\na *** b\n***"],
     ["a", "a\n***\n\n***\nb", "a\n\nb"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["one two three", "don't go"], ["a b"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b"], ["a b c"]),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hello"},
     ["a\n\nhello, you", 'a b\n\n"Hello" x'], ["hello\n\na", "a\n\nhelloo", "a\n\nhello\n\nb", "hello"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] and [b c]"], ["[a]", "[a\n] [b]", "(a) (b)"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye\nP.S. one", "p. s. x"], ["PS one", "Bye"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S later", "p. p. s"], ["P.S. one"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\n  * b\n**no**"], ["* a", "* a\n* b\n- c"]),
    ("detectable_format:constrained_response", {}, ["My answer is no.", "So: My answer is maybe."], ["no", "my answer is no."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and **b**", "*a* *b c*"],
     ["*a*", "* *  ** **", "*a\nb* *c*"]),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     ["SECTION 1\na\nSECTION 2\nb"], ["SECTION 1\na", "Section 1 Section 2", "SECTION A SECTION B"]),
    ("detectable_format:json_format", {}, ['{"a": [1]}', '```json\n{"a": 1}\n```', "```\n[1]\n```"], ["{a: 1}", "", '{"a": 1} ok']),
    ("detectable_format:title", {}, ["<<A title>>\ntext"], ["<A>", "<< >>", "<<a\nb>>"]),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a", "a******a", "a******b******c", "a******"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem."}, ["write a poem. Roses"], ["Roses. Write a poem."]),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, ["So. any questions? ", '"x Any questions?"'],
     ["Any questions? No.", ""]),
    ("startend:quotation", {}, ['"a b"', ' "a" '], ['"a', "a", '"', "'a'"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, ["AN OLD cat"], ["AN old"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, ["An OLD cat"], ["I AM"]),
    ("change_case:english_capital", {}, ["THIS IS FOR YOU."], ["This is for you.", "DAS IST NICHT EIN HAUS", "123"]),
    ("change_case:english_lowercase", {}, ["this is for you."], ["This is for you.", "das ist nicht ein haus"]),
    ("punctuation:no_comma", {}, ["a b; c"], ["a, b"]),
]  # fmt: skip

# The first article of the Universal Declaration of Human Rights, or a part of it.
DECLARATION = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người đều được tạo hoá",
    "sw": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права. Те са надарени с разум и съвест",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن يعامل",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند. همه دارای عقل و وجدان می باشند",
    "ur": "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔ انہیں ضمیر اور عقل ودیعت ہوئی ہے",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है",
    "mr": "सर्व मानवी व्यक्ती जन्मतःच स्वतंत्र आहेत व त्यांना समान प्रतिष्ठा व समान अधिकार आहेत",
    "ne": "सबै व्यक्तिहरू जन्मजात स्वतन्त्र हुन् ती सबैको समान अधिकार र महत्व छ",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน", "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা",
    "ta": "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே", "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును",
    "kn": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ", "gu": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો", "pa": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ",
    "ml": "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും", "he": "כל בני האדם נולדו בני חורין", "ko": "모든 인간은 태어날 때부터 자유로우며",
    "ja": "すべての人間は、生れながらにして自由であり", "zh": "人人生而自由,在尊严和权利上一律平等",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "following", "others"),
    CASES,
    ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)],
)
def test_each_kind(name: str, arguments: dict[str, Any], following: list[str], others: list[str]) -> None:
    check = INSTRUCTIONS[name]
    checked = arguments_of(name, arguments | {"of_another_kind": None})
    assert [text for text in following if not check(text, **checked)] == []
    assert [text for text in others if check(text, **checked)] == []


def test_all_25_kinds_are_there_and_tested() -> None:
    assert len(INSTRUCTIONS) == 25
    assert {case[0] for case in CASES} == INSTRUCTIONS.keys()


def test_every_language_that_ifeval_asks_for_is_told_from_the_others() -> None:
    assert DECLARATION.keys() == LANGUAGES
    assert {name: language_of(text) for name, text in DECLARATION.items()} == {
        name: name for name in DECLARATION
    }
    assert language_of("12 + 4") is None
    assert language_of("") is None


def test_sentences() -> None:
    assert sentences("Dr. Smith paid 3.50 to J. Doe. Why? He had to!\n\nA heading\n\n1. First point.") == [
        "Dr. Smith paid 3.50 to J. Doe.", "Why?", "He had to!", "A heading", "1. First point.",
    ]  # fmt: skip


def row(*instructions: tuple[str, dict[str, Any] | None]) -> dict[str, Any]:
    return {"instruction_id_list": [n for n, _ in instructions], "kwargs": [a for _, a in instructions]}


NO_COMMA, TWO_WORDS = ("punctuation:no_comma", None), ("length_constraints:number_words", {"num_words": 2, "relation": "at least"})  # fmt: skip


def test_a_response_must_follow_all_instructions() -> None:
    for label, metadata in ((row(NO_COMMA, TWO_WORDS), {}), (None, row(NO_COMMA, TWO_WORDS)), (json.dumps(row(NO_COMMA, TWO_WORDS)), {})):  # fmt: skip
        both = ifeval(Answer(text="one two", label=label, metadata=metadata))
        one = ifeval(Answer(text="one, two", label=label, metadata=metadata))
        assert (both.value, both.parts, one.value, one.parts) == (
            1.0,
            {"followed": 1.0},
            0.0,
            {"followed": 0.5},
        )
        assert ifeval(Answer(text="one, two", label=label, metadata=metadata), share=True).value == 0.5
        assert ifeval(Answer(text="  ", label=label, metadata=metadata)).parts["followed"] == 0
    assert ifeval(Answer(text="<think>a, b</think>one two", label=row(NO_COMMA))).value == 1


def test_the_loose_accuracy_leaves_out_first_and_last_lines_and_stars() -> None:
    label = row(("startend:quotation", None))
    text = 'Sure:\n**"a"**\nDone.'
    assert ifeval(Answer(text=text, label=label)).value == 0
    assert ifeval(Answer(text=text, label=label), loose=True).value == 1


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (None, "neither the label nor the row has `instruction_id_list`"), ("no json", "is no JSON"), ([1], "neither"),
        (row(("keywords:nothing", None)), "there is no instruction 'keywords:nothing'"),
        (row(("keywords:existence", {})), "keywords:existence needs the argument 'keywords'"),
        (row(("keywords:existence", {"keywords": "a"})), "keywords is 'a', which it cannot use"),
        (row(("punctuation:no_comma", {"x": 1})), "has no argument 'x'; it takes none"),
        (row(("language:response_language", {"language": "xx"})), "language is 'xx'"),
        (row(("length_constraints:number_words", {"num_words": 2, "relation": "more"})), "relation is 'more'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "kwargs must be a list of 1 objects"),
        ({"instruction_id_list": []}, "not a list of names"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_checked_are_refused(label: Any, said: str) -> None:
    with pytest.raises(LabelError, match=re.escape(said)):
        ifeval(Answer(text="a", label=label))


def test_hostile_texts_take_no_time() -> None:
    began = time.monotonic()
    for text in (
        "*" * 20_000,
        "[" * 20_000,
        "<<" * 10_000,
        "P.S" * 10_000,
        "\n" * 20_000,
        " " * 20_000,
        "a." * 10_000,
    ):
        for name, arguments, _, _ in CASES:
            INSTRUCTIONS[name](text, **arguments)
    assert time.monotonic() - began < 10
