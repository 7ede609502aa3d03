"""Words of every script, from the file a person imports to the strip."""

import json
from dataclasses import replace

import pytest

from device_runtime.bundle import TOKENIZER
from device_runtime.errors import CorpusError, RunError
from device_runtime.predictor import Predictor
from device_runtime.text import FIRST_WORD, Vocabulary, fold, spaceless
from device_runtime.writing import accept, split
from fedboard import corpus_figures
from fedboard.run import Settings
from fedboard.train import new_vocabulary
from model import corpora, corpus, imported
from model.recipe import Recipe
from model.scripts import REMEDY
from model.vocabulary import build

USERS = 40
# language: sentences of fewer than eight tokens, and a word among them
SPOKEN = {
    "pl": (
        "Łukasz jedzie dziś do Krakowa\nzażółć gęślą jaźń\nczy jesteś już w domu\n"
        "kupiłem świeży chleb i masło\npójdziemy jutro nad rzekę\nproszę zadzwoń później\n"
        "dziękuję bardzo za wszystko",
        "łukasz",
    ),
    "fr": (
        "José est né à Besançon\nl'été dernier nous étions là\nj'ai mangé une crème brûlée\n"
        "où êtes-vous allés hier\nc'était très agréable\nle garçon a reçu ça\n"
        "merci beaucoup pour votre aide",
        "besançon",
    ),
    "de": (
        "die Straße ist heute groß\nich weiß nicht genau\nwir fahren über die Brücke\n"
        "schöne Grüße aus München\nkannst du später anrufen\nmorgen früh gehen alle schwimmen\n"
        "das Mädchen hört Musik",
        "strasse",
    ),
    "vi": (
        "tôi không hiểu bạn\nhôm nay trời đẹp quá\nchúng ta đi ăn phở nhé\n"
        "cảm ơn rất nhiều\nngày mai gặp lại anh\nmẹ đang ở nhà\ncon mèo ngủ trên ghế",
        "không",
    ),
    "tr": (
        "İzmir bugün çok güzel\nışık söndü yine\nyarın görüşürüz arkadaşım\n"
        "kahve içmek ister misin\nben şimdi eve gidiyorum\nçocuklar dışarıda oynuyor\n"
        "teşekkür ederim her şey için",
        fold("İzmir"),
    ),
    "ru": (
        "привет как дела\nя сейчас еду домой\nтри кота спят на диване\n"
        "завтра мы пойдём в кино\nспасибо большое за помощь\nкупи пожалуйста хлеб и молоко\n"
        "мне очень нравится ёлка",
        "ёлка",
    ),
    "el": (
        "καλημέρα τι κάνεις σήμερα\nπάμε μαζί στην Αθήνα\nο λόγος είναι απλός\n"
        "ευχαριστώ πολύ για όλα\nθα έρθω αύριο το πρωί\nθέλω έναν καφέ παρακαλώ\n"
        "η γάτα κοιμάται τώρα",
        "καλημέρα",
    ),
    "ar": (
        "مرحبا كيف حالك اليوم\nأنا في البيت الآن\nسوف نذهب غدا إلى السوق\n"
        "شكرا جزيلا على المساعدة\nأريد قهوة من فضلك\nالجو جميل جدا هنا\nالسَّلامُ عليكم يا صديقي",
        "مرحبا",
    ),
    "fa": (
        "من می\u200cخواهم بروم خانه\nسلام حال شما چطور است\nکتاب\u200cها روی میز هستند\n"
        "امروز هوا خیلی خوب است\nفردا به بازار می\u200cرویم\nخیلی ممنون از کمک شما\n"
        "گربه روی صندلی خوابید",
        "می\u200cخواهم",
    ),
    "he": (
        "שלום מה שלומך היום\nאני בדרך הביתה עכשיו\nנלך מחר אל הים\nתודה רבה על הכול\n"
        'צה"ל וצ׳יפס ביחד\nאפשר לקבל קפה בבקשה\nהחתול ישן על הספה',
        "שלום",
    ),
    "hi": (
        "नमस्ते आप कैसे हैं\nमैं अभी घर जा रहा हूँ\nकल हम बाज़ार चलेंगे\nआज मौसम बहुत अच्छा है\n"
        "मदद के लिए धन्यवाद\nमुझे एक चाय दीजिए\nबिल्ली कुर्सी पर सो गई",
        "नमस्ते",
    ),
    "ko": (
        "안녕하세요 잘 지내요\n나는 지금 집에 가요\n내일 우리 영화 볼까\n오늘 날씨가 정말 좋아요\n"
        "도와줘서 너무 고마워요\n커피 한 잔 주세요\n고양이가 의자 위에서 자요\n"
        "학교에서 친구를 만났어요",
        "안녕하세요",
    ),
    "en+uk": (
        "see you at home later\nпривіт як твої справи\ni'm on my way now\nдякую дуже за допомогу\n"
        "don't forget the bread please\nзавтра підемо разом у кіно\nоб'єкт стоїть ще тут",
        "об'єкт",
    ),
}
RUNS = {
    "zh": "我今天想吃饭\n你明天去北京吗\n他们喜欢喝茶\n老师现在不想回家\n我们可以看电影",
    "ja": "私は今日寿司を食べます\n友達は明日お茶を飲む\n先生は毎朝パンを買いました",
    "th": "ฉันอยากกินข้าววันนี้\nเราชอบไปตลาดพรุ่งนี้\nเพื่อนไม่อยากดูหนังตอนเย็น",
}


def imported_corpus(
    folder, text: str, language: str = ""
) -> tuple[imported.ImportReport, corpus.Corpus]:
    """People who each sent all these lines, as `fedboard data import` reads and keeps them."""
    lines = [
        {"user": f"user{user}", "text": line, "timestamp": number}
        for user in range(USERS)
        for number, line in enumerate(text.splitlines())
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reading = imported.Reading(language=language)
    report = imported.import_file(folder / "chat.jsonl", folder / "imported", reading)
    return report, corpora.load(folder / "imported")


@pytest.mark.parametrize("language", SPOKEN)
def test_words_go_from_the_import_to_the_strip(language, tmp_path, tiny_bundle):
    text, word = SPOKEN[language]
    report, kept = imported_corpus(tmp_path, text, language)
    assert report.kept == report.rows
    assert report.words == USERS * len(text.replace("-", " ").replace('"', '" ').split())
    assert kept.language == language

    size = len(tiny_bundle.vocabulary) - FIRST_WORD
    everything = build(corpus.token_lists(kept.train), 1000)
    assert word in everything.tokens
    words = build(corpus.token_lists(kept.train), size)
    assert words.rules == 2
    assert len(words) == len(tiny_bundle.vocabulary)
    assert Vocabulary(words.model).tokens == words.tokens

    manifest = replace(tiny_bundle.manifest, tokenizer=words.hash, rules=words.rules)
    content = {**tiny_bundle.content, TOKENIZER: words.model}
    predictor = Predictor(replace(tiny_bundle, manifest=manifest, content=content))
    strip = predictor.suggest(text.splitlines()[0] + " ")
    assert len(strip) == 3
    for wanted in words.tokens[FIRST_WORD:]:
        context, prefix = split(f"{text.splitlines()[1]} {wanted[:1]}")
        offered = predictor.suggest(context, prefix)
        assert offered
        for each in offered:
            taken = accept(context + prefix, each.word)
            assert taken.startswith(context)
            assert fold(taken[len(context) :].strip()) == each.token


@pytest.mark.parametrize("language", RUNS)
def test_a_script_without_spaces_is_told_at_import_what_to_do_and_trains_by_pieces(
    language, tmp_path
):
    report, kept = imported_corpus(tmp_path, RUNS[language], language)
    assert report.kept == report.rows  # nothing is dropped
    assert [note for note in report.notes if REMEDY in note]
    stats = corpus.stats(kept)
    assert any(REMEDY in sentence for sentence in corpus_figures.sentences(stats))
    assert f"language: {language}" in corpus_figures.sentences(stats)
    with pytest.raises(RunError, match=r"--tokenizer unigram"):
        new_vocabulary(settings("words"), kept)
    pieces = new_vocabulary(settings("unigram"), kept)
    assert pieces.of_pieces
    assert any(spaceless(token) for token in pieces.tokens[FIRST_WORD:])


def settings(tokenizer: str) -> Settings:
    return Settings(data="imported", recipe=Recipe(tokenizer=tokenizer, vocabulary=200))


def test_a_few_words_of_such_a_script_among_others_say_nothing(tmp_path):
    report, _ = imported_corpus(
        tmp_path, "hello 世界\nsee you there tomorrow evening\nthat is fine with me"
    )
    assert not [note for note in report.notes if REMEDY in note]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        ("en", "en"),
        ("EN", "en"),
        ("pt-br", "pt-BR"),
        ("zh-hant-tw", "zh-Hant-TW"),
        ("es-419", "es-419"),
        ("sl-rozaj", "sl-rozaj"),
        ("de-1996", "de-1996"),
        ("en+de", "en+de"),
        ("en + de+en", "en+de"),
    ],
)
def test_a_language_is_kept_as_its_tag_is_written(given, kept):
    assert imported.tags(given) == kept


@pytest.mark.parametrize(
    "given", ["english", "e", "en_GB", "en-", "+", "en+", "12", "en-x", "деу", "en+" * 30]
)
def test_what_is_no_tag_of_a_language_is_refused_before_anything_is_written(given, tmp_path):
    with pytest.raises(CorpusError, match=r"--language: expected tags such as en, .*as en\+de"):
        imported_corpus(tmp_path, "hello there\nsee you", given)
    assert not (tmp_path / "imported").exists()


def test_a_corpus_without_a_language_is_one_that_an_earlier_version_reads(tmp_path):
    _, kept = imported_corpus(tmp_path, "hello there\nsee you")
    told = json.loads((tmp_path / "imported" / "corpus.json").read_text())
    assert told["format"] == "fedboard-corpus-2"
    assert "language" not in told
    assert kept.language == ""


def test_a_corpus_with_a_language_says_a_format_that_an_earlier_version_refuses_by_name(tmp_path):
    imported_corpus(tmp_path, "hello there\nsee you", "en+de")
    told = json.loads((tmp_path / "imported" / "corpus.json").read_text())
    assert (told["format"], told["language"]) == ("fedboard-corpus-3", "en+de")
