"""Lesson 01: from text to numbers: one-hot vectors, bags of words, bytes and byte-pair encoding.

You will see    that one-hot·E is a row of E; that a bag of words loses the order; that bytes can
                write any text; how byte-pair encoding (BPE) learns its merges by counting pairs;
                and what a larger vocabulary gains and costs.
Source          course C, "Representation of text" (one-hot vectors and bags of words);
                Sennrich, Haddow and Birch 2016, §3.2 and algorithm 1 (byte-pair encoding);
                Radford et al. 2019, §2.2 (BPE on bytes). No course has characters, bytes or BPE.
Expect          about 5 s on one core; every check passes; held-out English needs a third
                (34 %) of the tokens with a vocabulary of 2,048 that it needs with one of 256.
Not here        word vectors that carry meaning: a model learns them, from lesson 02 on.
Shapes          T words of a text, V vocabulary size, d numbers per word vector.
"""
# %%
import itertools
import math
from collections import Counter

import torch
from torch.nn import functional as F

from course import Lesson
from minigpt import plotting
from minigpt.text.corpora import prose
from minigpt.text.pretokenize import split_into_words
from minigpt.text.representations import bag_of_words, one_hot
from minigpt.text.tokenizers import BPETokenizer, CharTokenizer

lesson = Lesson("01_representations")

# %% [markdown]
# ## 1. One-hot vectors
# Natural language processing (NLP) is the part of linguistics, computer science and artificial
# intelligence that connects computers with human language. Course C lists seven uses: machine
# translation, language understanding, summaries, computational linguistics, text generation,
# question answering, and sentiment analysis (does a text praise or blame?). All of them begin with
# the same step: a computer calculates with numbers, so the text has to become numbers.
#
# The simplest way: list the V different words of the texts. This list is the **vocabulary**. The
# word with number i becomes the **one-hot vector** eᵢ of V numbers: 1 at place i, 0 elsewhere.
#
# A one-hot vector says which word it is, and nothing more. Two different words are perpendicular,
# and their distance is
#
#     |eᵢ − eⱼ| = √(1² + (−1)²) = √2
#
# So "cat" is as far from "dog" as from "saw": the vectors say nothing about meaning.
#
# Items: C01

# %%
words = "the cat saw the dog and the dog saw the cat run".split()
vocabulary = sorted(set(words))
V = len(vocabulary)
tokens = torch.tensor([vocabulary.index(w) for w in words])             # (T,)
vectors = one_hot(tokens, V)                                            # (T, V)
print(f"    vocabulary: {' '.join(vocabulary)}")
for word, vector in list(zip(words, vectors))[:3]:
    print(f"    {word:<5}{vector.int().tolist()}")
by_comparison = [[float(v == w) for v in vocabulary] for w in words]
lesson.check("one-hot: 1 at the word's number, 0 elsewhere", vectors, by_comparison, atol=0,
             source="C: one-hot encoding", items=("C02",))
every = one_hot(torch.arange(V), V)                                     # (V, V)
lesson.check("two different words are √2 apart", torch.cdist(every, every),
             math.sqrt(2) * (1 - torch.eye(V)), atol=1e-6, source="derived above")

# %% [markdown]
# ## 2. The embedding matrix: one-hot·E is a row of E
# Give each word a vector of d numbers instead. These vectors are the rows of a matrix E (V × d),
# the **embedding matrix**. The vector of word i is eᵢ·E. Entry j of it is
#
#     (eᵢ E)ⱼ = Σ_v (eᵢ)_v E_vj = E_ij          since (eᵢ)_v is 1 for v = i and 0 for all others
#
# So a program does not multiply. It reads row i of E: d numbers, instead of V·d products.
#
# The gradient follows in the same way. Let wₜ be the number of the word at place t, xₜ = e_wₜ·E its
# vector, and L a loss. Row i of E occurs in xₜ exactly when wₜ = i, so by the chain rule
#
#     ∂L/∂E_ij = Σₜ ∂L/∂xₜⱼ · [wₜ = i]          ([…] is 1 if the statement is true, 0 if not)
#
# A row receives one term for each place where its word stands. The row of a word that does not
# occur in the text receives 0. With word vectors as parameters, a model can learn meaning
# (Bengio et al. 2003; lesson 02).

# %%
d = 4
E = torch.randn(V, d, generator=lesson.generator, requires_grad=True)
lesson.check("one-hot·E = row of E", vectors @ E, F.embedding(tokens, E), atol=1e-6,
             source="derived above")

upstream = torch.randn(len(words), d, generator=lesson.generator)       # (T, d) stands for ∂L/∂xₜ
(through_product,) = torch.autograd.grad((vectors @ E * upstream).sum(), E)
by_hand = torch.zeros(V, d)
for t, word in enumerate(words):
    by_hand[vocabulary.index(word)] += upstream[t]
lesson.check("∂L/∂E: each row is the sum over the places of its word", through_product, by_hand,
             atol=1e-5, source="derived above")

# %% [markdown]
# ## 3. Bags of words
# Add the one-hot vectors of a text. The sum counts its words: it has V numbers, however long the
# text is. This vector is the **bag of words**,
#
#     bag(w₁ … w_T) = Σₜ e_wₜ
#
# If only the presence of a word matters, take the **vector of occurrence**, min(1, bag).
#
# A sum does not depend on the order of its terms, so a bag does not say in which order the words
# stood. How many texts have the same bag? n places can be filled with n words in n! ways.
# Exchanging the c_w copies of a word w with each other changes nothing, and there are c_w! ways to
# do so. This leaves n! / Π_w c_w! different texts.
#
# Course C shows the bag of "we were on a break", with a vocabulary of eight words. Its eight rows
# stand, from the top, for: a, (another word), were, we, (another), on, break, (another).
# **Erratum:** the column of the sum is printed as 1, 0, 1, 0, 0, 1, 0, 1. The five one-hot columns
# add up to 1, 0, 1, 1, 0, 1, 1, 0.

# %%
bag = bag_of_words(tokens[None], V)[0]                                  # (V,)
counted = Counter(words)
lesson.check("bag of words = Σ one-hots", bag, vectors.sum(0), atol=0, source="C: bag-of-words",
             items=("C03",))
lesson.check("bag of words = the counts of collections.Counter", bag,
             [counted[v] for v in vocabulary], atol=0, source="C: bag-of-words", items=("C03",))
occurrence = bag_of_words(tokens[None], V, binary=True)[0]              # (V,)
lesson.check("occurrence = min(1, count)", occurrence, [min(1, counted[v]) for v in vocabulary],
             atol=0, source="C: bag-of-words", items=("C04",))
rows = ["a", "?", "were", "we", "?", "on", "break", "?"]                # the rows of course C
its_tokens = torch.tensor([[rows.index(w) for w in "we were on a break".split()]])
lesson.check("course C's bag, corrected", bag_of_words(its_tokens, 8)[0], [1, 0, 1, 1, 0, 1, 1, 0],
             atol=0, source="C: bag-of-words, erratum", items=("C03",))

sentence = "the dog bit the man".split()
small = sorted(set(sentence))
arrangements = sorted(set(itertools.permutations(sentence)))
ids = torch.tensor([[small.index(w) for w in text] for text in arrangements])       # (60, 5)
bags = bag_of_words(ids, len(small))                                    # (60, 4)
lesson.check("each order of the words has the same bag", bags, torch.tensor([[1., 1, 1, 2]] * 60),
             atol=0, source="derived above")
lesson.check("the number of orders is n! / Π c_w!", len(arrangements),
             math.factorial(5) / math.factorial(2), atol=0, source="derived above")
print(f"    {len(arrangements)} texts have the same bag: “{' '.join(arrangements[7])}”, "
      "“the dog bit the man”, “the man bit the dog”, …")

# %% [markdown]
# ## 4. Characters and bytes
# New texts contain new words, which a vocabulary of words lacks. Characters are fewer. A
# **tokenizer** cuts a text into **tokens** and numbers them; `CharTokenizer` numbers the characters
# of its training text. But if this text was English, it cannot encode ñ.
#
# Unicode numbers all characters; a number is called a **code point**, and more than a million are
# possible. UTF-8 writes each code point as one to four **bytes**, and a byte has only 256 values.
# With the 256 bytes as tokens, every text can be encoded. The check encodes and decodes texts in
# several scripts, and random code points.

# %%
curious = ["mañana por la mañana", "perché no? è così", "e\u0301 is two code points, \u00e9 one",
           "नमस्ते दुनिया", "你好，世界", "שלום עולם", "👩🏽‍🚀 🇨🇱", " \t\r\n\x00", "𝕍 ∇ π"]
points = torch.randint(0x110000 - 0x800, (lesson.pick(300, 50), 25), generator=lesson.generator)
# The code points U+D800 to U+DFFF are not characters (UTF-16 uses them in pairs), so skip them.
points = points + 0x800 * (points >= 0xD800)
texts = curious + ["".join(map(chr, row)) for row in points.tolist()]
characters = CharTokenizer.train("".join(texts))
bytes_only = BPETokenizer([])                                           # no merges: bytes alone
english = BPETokenizer.train(prose(), lesson.pick(1024, 320))           # part 5 says how
for name, tokenizer in (("char", characters), ("bytes", bytes_only), ("BPE of English", english)):
    lesson.check(f"{name}: decode(encode(text)) = text, for any Unicode",
                 [tokenizer.decode(tokenizer.encode(text)) for text in texts], texts, atol=0,
                 source="Radford et al. 2019, §2.2")
lesson.check("byte tokens = the bytes of Python's UTF-8", [bytes_only.encode(t) for t in texts],
             [list(t.encode("utf-8")) for t in texts], atol=0, source="Radford et al. 2019, §2.2")
print(f"    the bytes of “ñ”: {bytes_only.encode('ñ')}; of “你”: {bytes_only.encode('你')}")
try:
    CharTokenizer.train(prose()).encode("mañana 你好")
except ValueError as error:
    print(f"    the characters of English prose alone: {error}")

# %% [markdown]
# ## 5. Byte-pair encoding: learn the merges by counting
# Bytes make long sequences. **Byte-pair encoding** (BPE) shortens them: count all pairs of
# neighbouring tokens, make the most frequent pair one new token, and repeat.
#
#     (a, b)* = argmax count(a, b)        on a tie, the pair with the smaller ids
#     a b → ab                            everywhere in the text
#
# The list of these merges, in the order learnt, is all that the tokenizer learns. Its vocabulary
# has the 256 bytes and one token per merge.
#
# The text is first cut into words, each with the space before it, and a pair never crosses from one
# word into the next. The function below is the simplest version: it counts all pairs again for each
# merge. The library counts each different word once and updates its counts after each merge. Both
# must give the same list.
#
# The counts never rise from one merge to the next. Why: let merge k have the count n. All other
# pairs had at most n then. A pair of old tokens can only become rarer. A pair with the new token
# occurs at most as often as the new token, so at most n times.

# %%
def merge(sequence, pair, new):
    """Replaces each `pair` in the list `sequence` by the token `new`, from left to right."""
    i = 0
    while i < len(sequence) - 1:
        if (sequence[i], sequence[i + 1]) == pair:
            sequence[i:i + 2] = [new]
        i += 1


def naive_merges(text, n_merges):
    """n_merges times: count every pair of the whole text, merge the most frequent one."""
    sequences = [list(word.encode("utf-8")) for word in split_into_words(text)]
    table = []
    for new in range(256, 256 + n_merges):
        count = Counter(pair for s in sequences for pair in itertools.pairwise(s))
        best = min(count, key=lambda pair: (-count[pair], pair))        # most frequent, smallest
        table.append((best, count[best]))
        for sequence in sequences:
            merge(sequence, best, new)
    return table


excerpt = prose()[:lesson.pick(6000, 2000)]
table = naive_merges(excerpt, lesson.pick(200, 40))
learnt = BPETokenizer.train(excerpt, 256 + len(table))
lesson.check(f"the first {len(table)} merges = counting again for each merge", learnt.merges,
             [pair for pair, _ in table], atol=0, source="Sennrich et al. 2016, algorithm 1")
for i, (pair, count) in enumerate(table[:8]):
    left, right = (learnt.vocabulary[p].decode("utf-8", errors="replace") for p in pair)
    print(f"    merge {i}: {left!r:>5} + {right!r:<5} → {left + right!r:<7} {count:4d} times")

counts = [count for _, count in table]
lesson.check("the counts never rise from one merge to the next", counts,
             sorted(counts, reverse=True), atol=0, source="derived above")

# %% [markdown]
# To encode a new text, cut it into words and apply the merges to each word, in the order in which
# they were learnt. The library's `encode_and_show_work` returns every step. It prints bytes as
# GPT-2 does: each byte has a visible character, Ġ for the space.

# %%
def naive_encode(text, merges):
    """Every merge, in the order learnt, applied to each word."""
    ids = []
    for word in split_into_words(text):
        sequence = list(word.encode("utf-8"))
        for rank, pair in enumerate(merges):
            merge(sequence, pair, 256 + rank)
        ids += sequence
    return ids


other = prose()[-lesson.pick(3000, 1000):]
lesson.check("encode = all merges, in the order learnt", english.encode(other),
             naive_encode(other, english.merges), atol=0, source="Sennrich et al. 2016, §3.2")
work = english.encode_and_show_work("The other fishermen, mañana")
for word in work["words"]:
    print(f"    {word['word']!r}: bytes {' '.join(word['bytes'])}")
    for step in word["merges"]:
        pair = " + ".join(step["pair"])
        print(f"        merge {step['rank']:>3}: {pair:<16} → {' '.join(step['result'])}")
print(f"    (Ġ is a space, Ã± the two bytes of ñ) {len(work['text'].encode('utf-8'))} bytes became "
      f"{len(work['ids'])} tokens:\n    {work['ids']}")

# %% [markdown]
# ## 6. How large a vocabulary?
# Each merge makes sequences shorter, and the vocabulary larger by one token. A smaller vocabulary
# is the beginning of a larger one, so one training gives all sizes.
#
# Sequence length is measured in characters per token: more is shorter. Three things to look at in
# the table:
#
# - The merges fit the training text. Other English text is cut into more pieces, and other
#   languages into many more. More tokens cost more computation, and more money where tokens are
#   sold.
# - Each further merge shortens the text less than the one before.
# - The larger the vocabulary, the rarer its tokens. A model cannot learn much about a token that
#   occurs only a few times in its training text.

# %%
pieces = prose().split("\n\n\n")
order = torch.randperm(len(pieces), generator=lesson.generator).tolist()
held_out = "\n\n\n".join(pieces[i] for i in order[:len(pieces) // 10])
learn = "\n\n\n".join(pieces[i] for i in order[len(pieces) // 10:])
ENGLISH = ("In the evening the old fisherman mended his nets on the quay and told the children "
           "how, many years ago, a storm had carried his boat to an island that no map shows. "
           "Nobody believed him, but everyone listened.")
SPANISH = ("Por la tarde el viejo pescador remendaba sus redes en el muelle y contaba a los niños "
           "cómo, hace muchos años, una tormenta había llevado su barca hasta una isla que no "
           "aparece en ningún mapa. Nadie le creía, pero todos escuchaban.")
ITALIAN = ("La sera il vecchio pescatore rammendava le reti sul molo e raccontava ai bambini come, "
           "molti anni fa, una tempesta avesse portato la sua barca su un'isola che nessuna carta "
           "segna. Nessuno gli credeva, ma tutti ascoltavano.")
texts = {"training text": learn, "held-out English": held_out, "paragraph in English": ENGLISH,
         "the same in Italian": ITALIAN, "the same in Spanish": SPANISH}

sizes = lesson.pick([256, 320, 384, 512, 768, 1024, 1536, 2048], [256, 320, 512, 2048])
largest = BPETokenizer.train(learn, sizes[-1])
lesson.check("consistency: a smaller vocabulary is the beginning of a larger one",
             BPETokenizer.train(learn, sizes[2]).merges, largest.merges[:sizes[2] - 256], atol=0,
             source="Sennrich et al. 2016, algorithm 1")
encoded, per_token, rare = {}, {}, {}
for size in sizes:
    tokenizer = BPETokenizer(largest.merges[:size - 256])
    for name, text in texts.items():
        encoded[name, size] = tokenizer.encode(text)
        per_token[name, size] = len(text) / len(encoded[name, size])    # characters per token
    occurs = Counter(encoded["training text", size])
    merged = range(256, size)                       # without the single bytes: most never occur
    rare[size] = sum(occurs[i] < 10 for i in merged) / max(1, len(merged))

print("    characters per token, by vocabulary size")
print(" " * 30 + "".join(f"{size:>7,}" for size in sizes))
for name in texts:
    print(f"    {name:<26}" + "".join(f"{per_token[name, size]:7.2f}" for size in sizes))
print(f"    {'merged tokens, < 10 times':<26}" + "".join(f"{rare[size]:7.0%}" for size in sizes))

first, last = sizes[0], sizes[-1]
lesson.claim("a larger vocabulary makes every text shorter",
             all(per_token[name, a] < per_token[name, b]
                 for name in texts for a, b in itertools.pairwise(sizes)),
             f"held-out English: {per_token['held-out English', first]:.2f} characters per token "
             f"with {first} tokens, {per_token['held-out English', last]:.2f} with {last:,}")

n_tokens = {size: len(encoded["held-out English", size]) for size in sizes}


def saved(a, b):
    """The share of the held-out text's tokens that the merges from size a to size b save."""
    return 1 - n_tokens[b] / n_tokens[a]


early, late = (saved(a, b) / (b - a) for a, b in (sizes[:2], sizes[-2:]))           # per merge
lesson.claim("each early merge saves more than twice as much as each late merge", early > 2 * late,
             f"of held-out English, the first {sizes[1] - first} merges save "
             f"{saved(*sizes[:2]):.0%} of the tokens, "
             f"the last {last - sizes[-2]:,} save {saved(*sizes[-2:]):.0%}")

# Some texts are easier than others, so compare one text with itself: once with the vocabulary that
# never read it, and once with a vocabulary of the same size whose training text contains it.
read_it = BPETokenizer.train(prose(), last)
with_it = len(held_out) / len(read_it.encode(held_out))
without_it = per_token["held-out English", last]
lesson.claim("a vocabulary fits its own training text better: > 0.1 characters per token more",
             with_it - without_it > 0.1,
             f"the held-out English: {with_it:.2f} characters per token if the {last:,} tokens "
             f"were learnt from it too, {without_it:.2f} if not")
count = {name: len(encoded[name, last]) for name in list(texts)[2:]}
lesson.claim("the same paragraph needs > 1.2 times as many tokens in a language not trained on",
             min(count["the same in Italian"], count["the same in Spanish"])
             > 1.2 * count["paragraph in English"],
             ", ".join(f"{n} tokens {name.removeprefix('the same ').removeprefix('paragraph ')}"
                       for name, n in count.items()))
lesson.claim("the larger the vocabulary, the rarer its tokens", rare[last] > 0.5 > rare[512],
             f"with 512 tokens, {rare[512]:.0%} of the merged tokens occur less than 10 times in "
             f"the training text; with {last:,}, {rare[last]:.0%}")

fig, (left, right) = plotting.figure(11, 4.2, columns=2)
for name, marker in zip(texts, "os^vD"):
    heights = [per_token[name, size] for size in sizes]
    left.plot(sizes, heights, marker=marker, label=name)
left.axhline(1, color="black", linestyle=":", label="characters as tokens")
left.set(xlabel="vocabulary size (tokens)", ylabel="characters per token", xscale="log",
         title="A larger vocabulary: shorter sequences", ylim=(0.8, None))
right.plot(sizes[1:], [100 * rare[size] for size in sizes[1:]], marker="o")
right.set(xlabel="vocabulary size (tokens)", ylabel="merged tokens that occur < 10 times (%)",
          ylim=(-3, 103), xscale="log", title="… but rarer tokens in the training text")
for axes in (left, right):
    axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
    axes.minorticks_off()
left.legend()
lesson.figure(fig, "vocabulary_size")

# %% [markdown]
# ## 7. Summary
# - A one-hot vector only names a word; times E, it selects the word's row.
# - A bag of words counts words and loses their order.
# - With bytes as tokens, every text can be encoded. BPE shortens the sequences again: it merges the
#   most frequent pair, again and again.
# - A larger vocabulary gives shorter sequences of rarer tokens. The later lessons use small
#   vocabularies, because their texts are small.

# %%
lesson.end()
