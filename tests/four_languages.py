"""Four languages: sentences of small grammars, three of them in scripts without spaces."""

import numpy as np

CHINESE = (
    ("我", "你", "我们", "他们", "老师", "朋友"),
    ("今天", "明天", "现在", "晚上"),
    ("想", "不想", "喜欢", "可以"),
    ("吃饭", "喝茶", "看电影", "去北京", "回家"),
    ("。", "吗？"),
)
JAPANESE = (
    ("私は", "あなたは", "友達は", "先生は"),
    ("今日", "明日", "毎朝"),
    ("ご飯を", "寿司を", "パンを", "お茶を"),
    ("食べます", "買いました", "作りたい"),
    ("。",),
)
THAI = (
    ("ฉัน", "คุณ", "เรา", "เพื่อน"),
    ("อยาก", "ไม่อยาก", "ชอบ"),
    ("กินข้าว", "ดื่มน้ำ", "ไปตลาด", "ดูหนัง"),
    ("วันนี้", "พรุ่งนี้", "ตอนเย็น"),
)
ENGLISH = (
    ("i ", "you ", "they "),
    ("want to ", "like to "),
    ("drink tea", "eat rice", "go home"),
    (".",),
)


def spoken(*grammars: tuple[tuple[str, ...], ...]) -> list[str]:
    """Sentences of small grammars, 150 of each."""
    rng = np.random.default_rng(5)
    return [
        "".join(parts[rng.integers(len(parts))] for parts in grammar)
        for grammar in grammars
        for _ in range(150)
    ]


SENTENCES = spoken(CHINESE, JAPANESE, THAI, ENGLISH)
