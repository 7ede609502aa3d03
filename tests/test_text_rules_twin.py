"""JavaScript reads the file of text rules as Python does: the same tokens of every script."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from device_runtime import text as text_rules
from device_runtime.text import tokenise

NODE = shutil.which("node") or shutil.which("nodejs")
PROGRAM = Path(__file__).with_name("text_rules.js")
RULES = json.loads(Path(text_rules.__file__).with_name("text_rules.json").read_text("ascii"))
SENTENCES = [
    "I'm in Kraków :)",
    "don’t, don´t, don′t, don‛t and don`t",
    "Łukasz and José went to İzmir",
    "José est né à Besançon, n'est-ce pas ?",
    "L’été dernier, j’ai mangé du bœuf",
    "Die Straße ist groß; HAUPTSTRASSE 5",
    "Ich weiß, daß es schön wäre!",
    "¿Dónde está el niño? ¡Aquí!",
    "Tôi không hiểu tiếng Việt đâu",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Zażółć gęślą jaźń",
    "Işık söndü, ığdır İstanbul'da",
    "Þetta er ágætt, æðislegt",
    "Sveiki, kā jums klājas?",
    "ol·la i col·legi",
    "naïve cafe\u0301 co\u0308operate",
    "Привет, как дела?",
    "Ёжик пьёт чай… ещё",
    "Він п'є каву, об’єкт",
    "Здравейте, как сте?",
    "Καλημέρα, τι κάνεις;",
    "Ο λόγος ΛΟΓΟΣ είναι",
    "Αθήνα 2024, ευχαριστώ πολύ!",
    "Բարեւ, ինչպե՞ս ես",
    "გამარჯობა, როგორ ხარ?",
    "مرحبا، كيف حالك؟",
    "السَّلامُ عَلَيْكُمْ",
    "من می\u200cخواهم بروم",
    "کتاب\u200cها خوب‌اند؟",
    "آپ کیسے ہیں؟",
    "العـــربية ١٢٣",
    "שלום, מה שלומך?",
    "צה״ל ו־צ׳יפס",
    "יש לי 2 ילדים",
    "नमस्ते, आप कैसे हैं?",
    "क्\u200dष और क्ष १२",
    "আমি ভাত খাই।",
    "நான் தமிழ் பேசுகிறேன்",
    "నేను తెలుగు మాట్లాడతాను",
    "안녕하세요, 잘 지내요?",
    "나는 학교에 갔어요 ㅋㅋㅋ",
    "我今天想吃饭。",
    "你好吗？我很好！",
    "私は寿司を食べます。",
    "ありがとう！コーヒーを飲む",
    "ฉันอยากกินข้าววันนี้",
    "ខ្ញុំចង់ញ៉ាំបាយ",
    "ကျွန်တော် ထမင်းစားတယ်",
    "hello 世界 and мир",
    "2 eggs and 3 apples, call 1234",
    "it costs 3.50 or 1,000 at 10:30",
    "b4 2day 10am 1990s covid19",
    "my wifi is Qx7vantib9rr2, code A1B2C3",
    "see https://a.example/b?c=1 or www.example.org now",
    "me.too@example.co.uk or example.com!",
    "ring <NAME> at <###>",
    "lol :-) :D xD <3 ^^ ¯\\_(ツ)_/¯ (╯°□°)",
    "yes 👍🏽 👩‍👩‍👧 🇩🇪🇫🇷 1️⃣ ❤️",
    "wait.. what..., ok., really?!? yes!?",
    "rock'n'roll 'quoted' \"double\" «French» — dash",
    "Ｆｕｌｌ ｗｉｄｔｈ 𝐛𝐨𝐥𝐝 ﬁne",
    "zero\u00adwidth soft\u00adhyphen \ufeffmark",
    "a_b c-d e/f g+h 50% $5 #tag @you",
    "",
]


@pytest.fixture(scope="module")
def told() -> list[list[str]]:
    if NODE is None:
        pytest.skip("no JavaScript here")
    given = json.dumps({"rules": RULES, "sentences": SENTENCES})
    done = subprocess.run(
        [NODE, str(PROGRAM)], input=given, capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("place", range(len(SENTENCES)))
def test_javascript_finds_the_same_tokens(told, place):
    assert told[place] == tokenise(SENTENCES[place])
