"""Instructions about a text's language and letter case.

The language is told by the script of most letters. Where several languages share a script, it is the one with most
function words or letters of its own; the lists are short, so a text of a few words may be taken for another language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

# The first word of a letter's Unicode name, and the only language of IFEval that is written with it.
_SCRIPTS = {
    "THAI": "th", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn", "GUJARATI": "gu", "GURMUKHI": "pa",
    "MALAYALAM": "ml", "HEBREW": "he", "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh",
}  # fmt: skip
_FUNCTION_WORDS = {
    "LATIN": {
        "en": "the of and to in is that it was for on are with as his they at be this have from or by not but what all "
        "were we when your can said there use an each which she do how their if will up other about out many then "
        "them these so some her would make like him into has look two more i you my",
        "es": "el la los las de que y en un una es por con para del se no lo su al como más pero sus le ya este sí "
        "porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante",
        "pt": "o a os as de que e do da em um uma é por com para não se na no dos das como mais mas foi ao ele seu sua "
        "ou ser quando muito há nos já está eu também só pelo pela até isso ela entre era depois sem mesmo são você",
        "fr": "le la les de des et en un une du est que qui dans pour pas au sur plus ne se ce il elle sont avec par "
        "nous vous mais ou où leur été cette ces comme je tu être très aux son ses",
        "de": "der die das und in zu den von mit sich des auf für ist im dem nicht ein eine als auch es an werden aus "
        "er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder ich wir",
        "it": "il la le gli di che e un una in è per con non del della si da sono dei nel alla più come ma ha anche "
        "io lo se ci questo questa delle al essere tutto molto quando perché suo sua nella",
        "pl": "w i na z się nie do to że jest o jak od po za ale przez dla co był tak już jego czy oraz może ich być "
        "są która które który tylko jej ma więc bardzo gdy przed pod",
        "vi": "và của là có được trong cho không một những người với các này đã để khi cũng từ đến như về tôi bạn "
        "nhiều ra sẽ vào thì đó phải nhưng chúng",
        "sw": "na ya wa kwa ni katika za la cha kuwa hii hiyo kama au lakini pia yake watu sana huo hizo ambayo vya "
        "mimi wewe yeye sisi hakuna kila mwa bila wao ili",
        "fi": "ja on ei se että oli hän ovat mutta joka ole kun niin myös kuin hänen tai sen mukaan jos vain sekä "
        "tämä minä sinä kanssa jotka voi ovat mitä nyt",
    },
    "CYRILLIC": {
        "ru": "и в не на я что он с как это по но они мы все она так его за был от то же вы бы для из у к о или если "
        "был только есть когда чтобы очень ы э",
        "uk": "і в не на я що він з як це по але вони ми все вона так його за був від та ви б для із у до про або якщо "
        "тільки є коли щоб дуже їх ї і",
        "bg": "и в не на аз че той с как това по но те ние всички тя така от за беше се да ще са е ли или ако само има "
        "когато много като при си му съм",
    },
    "ARABIC": {
        "ar": "في من على إلى أن هذا هذه التي الذي ما لا كان عن مع هو هي كل بعد قد بين أو ذلك كما لم إن",
        "fa": "و در به از که این را با است برای آن یک خود تا کرد بر هم نیز می شود شده های ها اما یا من هر",
        "ur": "کے میں کی ہے اور سے کا کو پر نے کہ یہ ہیں اس جو بھی ایک تھا نہیں ہو گیا تھے وہ تو لئے",
    },
    "DEVANAGARI": {
        "hi": "के में की है और से का को पर ने कि यह हैं इस जो भी एक था नहीं हो गया थे वह तो लिए",
        "mr": "आणि आहे या च्या ते तो हे ही मध्ये नाही आहेत होते होता व की साठी एक त्या काही मी तर केले म्हणून",
        "ne": "छ र को मा लाई ले छन् यो त्यो पनि हो गर्न भएको थियो गरेको एक हुन् तथा तर म हामी बाट",
    },
}  # fmt: skip
LANGUAGES = frozenset(_SCRIPTS.values()) | {name for of in _FUNCTION_WORDS.values() for name in of}
_LETTERS = 2000  # that decide the script
_WORDS = 2000


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, of those that IFEval asks for; None for none of them."""
    letters = [letter for letter in text if letter.isalpha()][:_LETTERS]
    scripts = Counter(_script(letter) for letter in letters)
    if not scripts:
        return None
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > len(letters) / 10:
        return "ja"
    script = scripts.most_common(1)[0][0]
    if script not in _FUNCTION_WORDS:
        return _SCRIPTS.get(script)
    found = Counter(
        re.findall(r"[^\W\d_]+(?:[\u0900-\u0903\u093a-\u094f\u0962-\u0963]\w*)*", text.lower())[:_WORDS]
    )
    known = {name: _overlap(found, name, script) for name in _FUNCTION_WORDS[script]}
    best = max(known, key=lambda name: known[name])
    return best if known[best] else None


def response_language(text: str, *, language: str) -> bool:
    """The text is in the language with this ISO 639-1 code."""
    return language_of(text) == language


def english_capital(text: str) -> bool:
    """The text is English, in capital letters only."""
    return text.isupper() and language_of(text) == "en"


def english_lowercase(text: str) -> bool:
    """The text is English, in small letters only."""
    return text.islower() and language_of(text) == "en"


def _overlap(found: Counter[str], name: str, script: str) -> int:
    return sum(found[word] for word in _words(name, script))


@cache
def _words(name: str, script: str) -> frozenset[str]:
    return frozenset(_FUNCTION_WORDS[script][name].split())


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0]
