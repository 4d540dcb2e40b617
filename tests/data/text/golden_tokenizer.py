"""Write the ids of open_clip's tokenizer for nasty captions and a small vocabulary: `golden_tokenizer.json` and `.txt`.

`python tests/data/text/golden_tokenizer.py` writes both. It needs open_clip and its dependencies, but not nml_jax. The
vocabulary has CLIP's format: a title, then one merge per line.
"""

import gzip
import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
VOCABULARY = Path(__file__).with_suffix(".txt")
MERGES = 200

SENTENCES = [
    "a photo of a small dog that sleeps on a red chair",
    "two children are playing with a wooden train near the window",
    "the old lighthouse stands on a cliff above the stormy sea",
    "a photograph of seven green bottles hanging on the wall",
    "she doesn't know that they've painted the house and he'll see it",
    "an aerial view of the harbour with boats and containers in the evening light",
    "smiling face with sunglasses, flag: norway, keycap: 7",
    "the chef isn't cooking, he's cutting onions and we're waiting in the kitchen",
    "close-up of a bee on a purple flower in the botanical garden",
    "people walking through the station on a rainy morning with umbrellas",
]

CAPTIONS = [
    "",
    " \t\n ",
    "a photo of a dog",
    "A Photo Of THE Dog.",
    "  a   photo\tof\na dog \r\n",
    "she doesn't, they'VE, he'll, I'm, we're, I'd, it's; 'tis the dogs' 's 't''s",
    "'s 't 're 've 'm 'll 'd 'ſ 'K ’s ‘quoted’ “double”",
    "7 red bottles, 12,345.67 apples and 1000000 bees; ½ ² ٣ Ⅷ 一二三",
    "café naïve Ærøskøbing Straße ÅNGSTRÖM İstanbul ΟΔΥΣΣΕΥΣ",
    "cafe\u0301 na\u0131ve e\u0302\u0323 \u1e9e \u212b \u2126",
    "schÃ¶n â€œquotedâ€\x9d cafÃ© doesnâ€™t",
    "dog &amp; cat &lt;b&gt; &quot;x&quot; &eacute; &#233; &#x1F600; &nbsp; &copy",
    "&amp;amp; &amp;lt;p&amp;gt; &amp;amp;amp; &amp;eacute; e&amp;#769; AT&T; &notanentity; &",
    "<b>bold</b> &amp; <i>tags</i> &lt;not&gt; cafe&#769; <br/>",
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1f3\U0001f1f4",
    "\U0001f44d\U0001f3fd 7\ufe0f\u20e3 \u2764\ufe0f",
    "a dog\U0001f436and a cat\U0001f431!",
    "一只狗在红色的椅子上 犬の写真 カタカナ ｶﾀｶﾅ ＦＵＬＬｗｉｄｔｈ 강아지 사진",
    "собака спит كلب نائم שלום कुत्ता สุนัข",
    "dog\u00a0\u2003\u3000photo\u200bzero\u2060width\ufeffbom\u00adhyphen",
    "control\x00 \x07 \x1b[31mred\x1b[0m \x7f \x85 \x1c\x1d\x1e\x1f \u2028\u2029 end",
    "&#0; &#x80; &#xD800; &#x1; &#xFFFE; &amp;#7; &#x110000;",
    "\ud83d\ude00 \ud800 lone",
    "ﬁne ﬂower ﬅ oﬃce \u0132 \u01c6 &#xFB01; &amp;#xFB05;",
    "!!! ??? ... -- --- _under_score_ #tag @user http://a.example/x?y=1&z=2 C:\\dir 50% $5 a+b=c ~^`|",
    "!'s ''s '' a's! (it's) \"it's\" x's's",
    "<|startoftext|> a dog <|endoftext|> more",
    "<start_of_text> a dog <end_of_text> more",
    "!<end_of_text>dog<end_of_text>!<START_OF_TEXT>7<end_of_text>",
    "<ſtart_of_text> <end_of_text &lt;end_of_text&gt; <end_of_text>s",
    "�\ue000\U000f0000\U0010ffff\ufffe",
    "a\u0300\u0301\u0302\u0303\u0304\u0305 zalgo \u0336t\u0336e\u0336x\u0336t",
    "a photo of a dog " * 4 + "and seven green bottles",
    "seven green bottles hanging on the wall " * 30,
    "x" * 500,
    "\U0001f436" * 40,
    "7" * 90,
    "the " * 74 + "dog",
    "the " * 75 + "dog",
    "the " * 76 + "dog",
]


def merges(sentences: list[str], count: int) -> list[tuple[str, str]]:
    """Compute byte-pair merges of words of a to z by their definition. Ties go to the pair that sorts first."""
    words = Counter((*word[:-1], word[-1] + "</w>") for s in sentences for word in s.split() if word.isalpha())
    out = []
    while len(out) < count:
        pairs = Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        out.append(best)
        words = Counter({_merge(word, best): n for word, n in words.items()})
    return out


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def open_clip():
    """Import open_clip's tokenizer, even if torchvision lacks its compiled part, which nothing here uses."""
    import torch

    try:
        import open_clip.tokenizer as module
    except RuntimeError:
        needs = torch.library.Library("torchvision", "DEF")
        needs.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        needs.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import open_clip.tokenizer as module

        module.torchvision_operators = needs  # keeps the operators alive
    return module


def main() -> None:
    import importlib.metadata

    text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges(SENTENCES, MERGES))
    VOCABULARY.write_text(text, "utf-8")
    with tempfile.NamedTemporaryFile(suffix=".txt.gz") as f:
        f.write(gzip.compress(text.encode()))
        f.flush()
        tokenizer = open_clip().SimpleTokenizer(f.name)
    ids = [np.trim_zeros(tokenizer([caption], 77)[0].numpy(), "b").tolist() for caption in CAPTIONS]
    about = {name: importlib.metadata.version(name) for name in ("open_clip_torch", "ftfy", "regex")}
    FILE.write_text(json.dumps(about | {"ids": ids}) + "\n", "utf-8")
    print(about, tokenizer.vocab_size, sum(map(len, ids)), "tokens")


if __name__ == "__main__":
    main()
