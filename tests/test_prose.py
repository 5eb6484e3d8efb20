"""The prose: words that we do not use; and the numbers of the tutorials against what their code says and prints."""

import ast
import io
import re
import tokenize
from math import exp, log
from types import SimpleNamespace

import gallery
import pytest
from bs4 import BeautifulSoup

# What to write instead: the field's word, or a plain sentence.
WORDS = {
    r"raw scores?": "logits",
    r"scans?": "image",
    r"drawings?": "reconstruction",
    r"prices?": "KL weight",
    r"loud(ness)?": "activation",
    r"awake|asleep|sleepers?|deaf": "active, collapsed",
    r"slopes?": "gradient",
    r"read rightly": "accuracy",
    r"weighed": "profiled",
    r"(hybridized|user's) parent|in a parent": "enclosing block",
    r"lends?|lent|what it misses": "patches the names that MXNet needs",
    r"metadata (admit|allow) no": "MXNet's metadata exclude",
    r"silences?|silenced": "ignores, has weight 0",
    r"whatever (it|they|the two sides) holds?": "even NaN",
    r"in every corner": "in edge cases",
    r"declines? it": "raises ImportError",
    r"makes no NaN": "never gives NaN for finite inputs",
    r"takes that one's place": "is a subclass, accepted wherever that is",
    r"never raises by itself": "values are not validated automatically",
    r"less than torch eager but": "faster than eager torch, except",
    r"averages where it says so": '"mean" averages',
    r"wishes": "objectives",
    r"many times faster": "a number, and for what",
    r"(goes|go|run|runs) over MXNet's operators": "uses MXNet's operators",
    r"the say of": "the weight of",
    r"speaks? for a mistake": "suggests a mistake",
    r"caught are": "it finds",
    r"graphs? of (a user's|ours|our own)": "a user's graph, our own graph",
    r"put together by hand": "made by hand",
    r"in (the|each other's) place( of)?": "instead of; swapped",
    r"that there is not": "that does not exist",
    r"(is|are|not) looked at": "is (not) read",
    r"as of :class": "as in",
    r"ready made": "compiled",
    r"all the same": "nevertheless; too",
    r"anew": "again",
    r"front doors?": "base class",
    r"roads? of a call": "path of a call",
    r"if need be": "if necessary",
    r"whoever": "anybody who",
    r"aloud": "with a message",
    r"stands? in for": "replaces",
    r"hands? (out|over)": "returns, passes",
}
# Rows of the benchmark's tables are named so.
ALLOWED = {"docs/benchmarks.rst": ("in a parent",)}
SOURCES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/tutorials.txt", "gluon_kl/native/__init__.py",
           "tasks.py", "setup.py",
           *(str(path.relative_to(gallery.ROOT)) for pattern in ("docs/*.rst", "gluon_kl/*.py", "tutorials/*.py")
             for path in sorted(gallery.ROOT.glob(pattern)))]


def prose(source):
    """A page without its code and what that printed; of a module the docstrings, messages and comments."""
    text = (gallery.ROOT / source).read_text(encoding="utf-8")
    if source.endswith(".py"):
        strings = [node.value for node in ast.walk(ast.parse(text))
                   if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        comments = [token.string.lstrip("# ") for token in tokenize.generate_tokens(io.StringIO(text).readline)
                    if token.type == tokenize.COMMENT]
        return "\n".join((*strings, *comments))
    if source.endswith(".md"):
        return re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"^\.\. code-block::.*\n(?:   .*\n|\n)+", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("source", SOURCES)
def test_words_that_we_do_not_use(source):
    text = " ".join(prose(source).split())
    for allowed in ALLOWED.get(source, ()):
        text = re.sub(allowed, "", text, flags=re.IGNORECASE)
    found = {match.group(): instead for word, instead in WORDS.items()
             for match in re.finditer(rf"\b(?:{word})\b", text, re.IGNORECASE)}
    assert not found, "write instead " + "; ".join(f"for {word!r}: {instead}" for word, instead in found.items())


def test_the_search_of_the_site_finds_what_people_look_for():
    """It holds the words of the pages."""
    words = " ".join(prose(source) for source in SOURCES if source.startswith("docs/"))
    for wanted in ("VAE", "ELBO", "TRPO", "np.PZERO", "distillation", "Jensen-Shannon", "label smoothing", "teacher",
                   "top-k", "DistiLLM", "GKD"):
        assert re.search(rf"\b{wanted}\b", words, re.IGNORECASE), wanted


@pytest.fixture(scope="module")
def pages(site):
    """The words, code and output of each tutorial; no sources, literals or formulas among the words."""
    found = {}
    for name in gallery.TUTORIALS:
        article = BeautifulSoup((site / "gallery" / f"{name}.html").read_text("utf-8"), "html.parser").article
        for rubric in article.select("p.rubric"):
            for source in (rubric, *rubric.find_next_siblings()):
                source.extract()
        printed, code = ("\n".join(block.extract().get_text() for block in article.select(selector))
                         for selector in ("div.sphx-glr-script-out", "div.highlight"))
        for left_out in article.select(".math, code, a.footnote-reference, .sphx-glr-footer, h1, h2, h3"):
            left_out.extract()
        found[name] = SimpleNamespace(words=" ".join(article.get_text(" ").split()), code=code, printed=printed)
    return found


# Numerals that stand neither in the output nor in the code of their page, and where they come from.
ELSEWHERE = {
    "kl_divergence": {
        "1.4427": 1 / log(2), "2.8": (0.2 + 0.2) * log(1000), "1797": 600 + 800 + 397, "32,000": 32000,
        "2020": 2020, "1000": 1000,  # history, and the example of its consequence
    },
    "knowledge_distillation": {
        "1797": 600 + 1197, "85": (65 * 256 + 257 * 256 + 257 * 10) / 1000, "2.4": (65 * 32 + 33 * 10) / 1000,
    },
    "padded_sequences": {"30": 6 * 5},
}


def value(numeral):
    return float(numeral.replace(",", ""))


@pytest.mark.site
@pytest.mark.parametrize("name", gallery.TUTORIALS)
def test_numerals_are_those_of_the_page(pages, name):
    """Rounded as the prose rounds them."""
    page, elsewhere = pages[name], ELSEWHERE.get(name, {})
    known = [value(text) for text in re.findall(r"\d[\d,]*(?:\.\d+)?", page.printed + page.code)]
    numerals = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)", page.words)
    for numeral in numerals:
        digits = len(numeral.partition(".")[2])
        sources = [elsewhere[numeral]] if numeral in elsewhere else known
        assert any(round(source, digits) == value(numeral) for source in sources), numeral
    assert set(elsewhere) <= set(numerals), "a source that nothing needs"


def numbers(page, start):
    """Those of all lines of the output that start so, in order."""
    return [number for line in page.printed.splitlines() if line.startswith(start)
            for number in gallery.numbers(line[len(start):].strip(" []:"))]


def near(found, expected, share=0.15):
    return abs(found - expected) <= share * expected


# What the prose says in words: the page, the words, and what must be true of the page for them to stand.
CLAIMS = [
    ("kl_divergence", "is ten times as far from",
     lambda page: near(numbers(page, "KL(dist_3 || dist_1) =")[0] / numbers(page, "KL(dist_2 || dist_1) =")[0], 10)),
    ("kl_divergence", "about as certain as the readers, not more",
     lambda page: 0.95 < numbers(page, "network  ")[0] / numbers(page, "readers  ")[0] <= 1),
    ("kl_divergence", "almost as accurate as they are",
     lambda page: 0 < numbers(page, "readers  ")[1] - numbers(page, "network  ")[1] < 3),
    ("which_divergence", "never produces two fifths of what is real", lambda page: "+ 0.4 * peak(3" in page.code),
    ("which_divergence", "ends at the same place from every start",
     lambda page: len({tuple(gallery.numbers(line)) for line in page.printed.splitlines()
                       if re.match(r"KL\(p ‖ q\) +(left|middle|right)", line)}) == 1),
    ("which_divergence", "here the seeking one is deeper",
     lambda page: numbers(page, "Jensen-Shannon  left")[0] < numbers(page, "Jensen-Shannon  middle")[0]),
    ("which_divergence", "reaches 14 nats only at the very end",
     lambda page: numbers(page, "     0  ")[1] > 13.9 and numbers(page, "0.0001")[1] < 7),
    ("knowledge_distillation", "two, five or twenty images", lambda page: "images=([2, 5, 20]," in page.code),
    ("knowledge_distillation", "with five seeds", lambda page: "seeds=(5," in page.code),
    ("knowledge_distillation", "together get about one percent",
     lambda page: near(numbers(page, "T = 1:")[0], 1, 0.3)),
    ("knowledge_distillation",
     "With two images per digit, students of the teacher are as accurate as students of labels with five",
     lambda page: near(numbers(page, " 2 teacher only")[0], numbers(page, " 5 labels only")[0], 0.01)),
    ("knowledge_distillation", "With five, they are almost as accurate as students of labels with twenty",
     lambda page: 0 < numbers(page, "20 labels only")[0] - numbers(page, " 5 teacher only")[0] < 1.5),
    ("knowledge_distillation", "nine tenths for the correct digit, and a hundredth more for every digit",
     lambda page: "0.9 * np.eye(10)[digits] + 0.01" in page.code),
    ("knowledge_distillation", "Smoothing alone does not help here",
     lambda page: numbers(page, "smoothed labels")[0] <= numbers(page, "labels  ")[0]),
    ("knowledge_distillation", "less than half of what the teacher can give",
     lambda page: numbers(page, "teacher, T = 1")[0] - numbers(page, "labels  ")[0]
     < (numbers(page, "teacher, T = 4")[0] - numbers(page, "labels  ")[0]) / 2),
    ("padded_sequences", "a ninth of its size",
     lambda page: near(9 * numbers(page, "a student:")[0], numbers(page, "teacher:")[0], 0.06)),
    ("sparse_autoencoder", "one image in twenty", lambda page: "activity=(0.05," in page.code),
    ("sparse_autoencoder", "two or three units are active for an image, instead of half of the units",
     lambda page: 2 <= numbers(page, "sparse")[2] <= 3 and near(numbers(page, "dense")[2], 48 / 2)),
    ("sparse_autoencoder", "Units are active for one image in ten", lambda page: near(numbers(page, "sparse")[1], 10)),
    ("sparse_autoencoder", "A guess is correct for one image in ten", lambda page: near(numbers(page, "dense")[3], 10)),
    ("variational_autoencoder", "Half of the dimensions carry nothing",
     lambda page: "\nactive: 4 of 8\n" in page.printed),
    ("variational_autoencoder", "64 times too much weight here",
     lambda page: numbers(page, "sum / mean:") == [64]),
    ("variational_autoencoder", "dimensions carry up to ten nats",
     lambda page: near(max(numbers(page, "annealed  ")[1], numbers(page, "free nats  ")[1]), 10, 0.05)),
    ("variational_autoencoder", "With free nats, all of them stay active, at half a nat or more",
     lambda page: "\nactive: 8 of 8\n" in page.printed and numbers(page, "free nats  ")[0] >= 0.495),
    ("variational_autoencoder", "twenty held-out images of each digit", lambda page: "== digit)[:20]" in page.code),
    ("variational_autoencoder", "Its KL term is half a nat", lambda page: "\n0.50 nats\n" in page.printed),
    ("trust_region_policy", "a quarter of the decisions",
     lambda page: "[[0.25, 0.75, 0.0]]" in page.code and "[[0.5, 0.5, 0.0]]" in page.code),
    ("trust_region_policy", "six digits are right", lambda page: "product right to 1e-6: True" in page.printed),
    ("trust_region_policy", "a median divergence like that of the trust region, but some of them are much larger",
     lambda page: near(numbers(page, "plain, short")[1], numbers(page, "trust region")[1], 0.5)
     and numbers(page, "plain, short")[2] > 10 * numbers(page, "trust region")[2]),
    ("trust_region_policy", "it is twice the bound", lambda page: near(numbers(page, "[0.6, 0.4]:")[0], 0.02, 0.05)),
    ("distributed_training", "fifteen most similar", lambda page: "neighbours=15" in page.code),
    ("distributed_training", "The results agree to six decimals",
     lambda page: numbers(page, "one process") == numbers(page, "worker 0") == numbers(page, "worker 1  ")),
    ("large_vocabulary", "320 positions are ten million numbers",
     lambda page: near(320 * 32000, 10e6, 0.03) and re.search(r"\brows=\(320,", page.code)),
    ("large_vocabulary", "64 tokens take a thirtieth of the memory of all",
     lambda page: near(30 * numbers(page, "k = 64  ")[0], numbers(page, "all tokens")[0], 0.05)),
    ("large_vocabulary", "six points less accurate than with all of them",
     lambda page: near(numbers(page, "all tokens")[-2] - numbers(page, "k = 64  ")[-2], 6, 0.2)),
    ("large_vocabulary", "The first choices are about equally good. But with the other two",
     lambda page: all(near(numbers(page, tail)[0], numbers(page, "bucket")[0], 0.03)
                      and numbers(page, tail)[1] > 1.3 * numbers(page, "bucket")[1]
                      for tail in ("renormalize", "drop"))),
    ("large_vocabulary", "takes the same memory and is more accurate",
     lambda page: numbers(page, "k = 64  ")[0] == numbers(page, "stored:")[0]
     and numbers(page, "k = 64  ")[-2] > numbers(page, "accuracy:")[0]),
    ("large_vocabulary", "most of its probability lies in the tail",
     lambda page: exp(-numbers(page, "loss of the teacher:")[0] / 2**2) < 0.5),
]


@pytest.mark.site
@pytest.mark.parametrize("name, words, holds", CLAIMS, ids=[f"{name}-{words}" for name, words, _ in CLAIMS])
def test_what_is_said_in_words_holds(pages, name, words, holds):
    assert words in pages[name].words, "the prose has changed: so must this table"
    assert holds(pages[name])
