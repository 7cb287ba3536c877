"""Lesson 01: from text to numbers: one-hot vectors, bags of words, characters, bytes and byte-pair encoding.

You will see    that multiplying by a one-hot vector is looking up a row; that a bag of words forgets order; that bytes can
                write any text; a table of merges learnt by counting; and what a larger vocabulary buys, and costs.
Source          course C, "Representation of text"; Sennrich, Haddow and Birch 2016 (byte-pair encoding); Radford et al. 2019 (on bytes).
Expect          about 3 s; every check passes; held-out English takes a third as many tokens with 2,048 kinds of token as with 256.
Not here        vectors that mean something: they are learnt with a model, from lesson 02 on.
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
# Number the words of a vocabulary. Word i becomes a vector of V numbers: 1 at place i, 0 elsewhere. It says which word
# it is and nothing else: any two are perpendicular and √2 apart, "cat" as far from "dog" as from "saw".

# %%
words = "the cat saw the dog and the dog saw the cat run".split()
vocabulary = sorted(set(words))
V = len(vocabulary)
tokens = torch.tensor([vocabulary.index(w) for w in words])             # (T,)
vectors = one_hot(tokens, V)                                            # (T, V)
for word, vector in list(zip(words, vectors))[:3]:
    print(f"    {word:<5}{vector.int().tolist()}")
lesson.check("one-hot: 1 at the word's number, 0 elsewhere", vectors, [[float(v == w) for v in vocabulary] for w in words],
             atol=0, source="C: one-hot")
every = one_hot(torch.arange(V), V)                                     # (V, V)
lesson.check("any two different words are √2 apart", torch.cdist(every, every), math.sqrt(2) * (1 - torch.eye(V)),
             atol=1e-6, source="C: one-hot")

# %% [markdown]
# ## 2. The embedding matrix: one-hot·E is a row of E
# Give each word a vector of d numbers, the rows of a matrix E (V × d). Written as algebra, the vector of word i is e_i·E:
#
#     (e_i E)_j = Σ_v (e_i)_v E_vj = E_ij          since (e_i)_v is 1 for v = i and 0 for all others
#
# So no one multiplies: a program looks the row up, d numbers read instead of V·d multiplied. The gradient is the same story
# backwards, ∂L/∂E = Σₜ e_{wₜ} (∂L/∂xₜ): only rows of words that occurred receive anything, each as often as it occurred.

# %%
d = 4
E = torch.randn(V, d, generator=lesson.generator, requires_grad=True)
lesson.check("one-hot·E = row of E", vectors @ E, F.embedding(tokens, E), atol=1e-6, source="C: embedding matrix")

upstream = torch.randn(len(words), d, generator=lesson.generator)       # stands for ∂L/∂x, (T, d)
(through_product,) = torch.autograd.grad((vectors @ E * upstream).sum(), E)
by_hand = torch.zeros(V, d)
for t, word in enumerate(words):
    by_hand[vocabulary.index(word)] += upstream[t]
lesson.check("∂L/∂E: each row collects from the places where its word stood", through_product, by_hand,
             atol=1e-5, source="C: embedding matrix")

# %% [markdown]
# ## 3. Bags of words
# Add up a text's one-hot vectors, and you have counted its words: a vector of V numbers for a text of any length. Only
# *whether* a word occurs is min(1, count). Addition does not care about order, so neither does the bag: all arrangements of
# the same words have one bag between them, and of n words, word w occurring c_w times, there are n! / Π c_w! arrangements.

# %%
bag = bag_of_words(tokens[None], V)[0]                                  # (V,)
lesson.check("bag of words = Σ one-hots", bag, vectors.sum(0), atol=0, source="C: bag of words")
lesson.check("… = what a counter counts", bag, [Counter(words)[v] for v in vocabulary], atol=0, source="C: bag of words")
lesson.check("occurrence = min(1, count)", bag_of_words(tokens[None], V, binary=True)[0], [min(1, words.count(v)) for v in vocabulary],
             atol=0,
             source="C: bag of words")

sentence = "the dog bit the man".split()
small = sorted(set(sentence))
arrangements = sorted(set(itertools.permutations(sentence)))
bags = bag_of_words(torch.tensor([[small.index(w) for w in a] for a in arrangements]), len(small))  # (60, V)
lesson.check("every order of the words has the same bag", bags, bags[:1].expand_as(bags), atol=0, source="C: bag of words")
lesson.check("… and there are n! / Π c_w! of them", len(arrangements), math.factorial(5) / math.factorial(2),
             atol=0, source="C: bag of words")
print(f"    {len(arrangements)} texts, 1 bag: “{' '.join(arrangements[7])}”, “the dog bit the man” and "
      "“the man bit the dog” are the same to it")

# %% [markdown]
# ## 4. Characters and bytes
# Words are an open set: tomorrow's text has one that today's vocabulary lacks. Characters are fewer, and numbering those of
# the training text makes a tokenizer, but it is speechless at the first ñ if its text was English. Unicode has over a million
# code points; UTF-8 writes each with one to four *bytes*, and of bytes there are 256. With those as tokens no text is unknown.

# %%
curious = ["mañana por la mañana", "perché no? è così", "e\u0301 is two code points, \u00e9 one", "नमस्ते दुनिया",
           "你好，世界", "שלום עולם", "👩🏽‍🚀 🇨🇱", " \t\r\n\x00", "𝕍 ∇ π"]
points = torch.randint(0x110000 - 0x800, (lesson.pick(300, 50), 25), generator=lesson.generator)    # all code points …
points = points + 0x800 * (points >= 0xD800)                            # … but U+D800 to U+DFFF, which are halves of pairs, no characters
texts = curious + ["".join(map(chr, row)) for row in points.tolist()]
characters, bytes_only = CharTokenizer.train("".join(texts)), BPETokenizer([])                      # no merges: bytes
english = BPETokenizer.train(prose(), lesson.pick(1024, 320))
for name, tokenizer in (("char", characters), ("bytes", bytes_only), ("BPE of English", english)):
    lesson.check(f"{name}: decode(encode(text)) = text, of any Unicode", [tokenizer.decode(tokenizer.encode(t)) for t in texts], texts,
                 atol=0,
                 source="C: tokens; Radford et al. 2019, §2.2")
print(f"    “ñ” is {bytes_only.encode('ñ')} in bytes, “你” {bytes_only.encode('你')}")
try:
    CharTokenizer.train(prose()).encode("mañana 你好")
except ValueError as error:
    print(f"    characters of English prose alone: {error}")

# %% [markdown]
# ## 5. Byte-pair encoding: the merge table is a count
# Bytes make long sequences. So: count all pairs of neighbours, make the most frequent pair one new token, and repeat.
#
#     (a, b)* = argmax count(a, b),   then   a b → ab   everywhere;   ties go to the smaller numbers
#
# Pairs never straddle two words: the text is first cut into words, each with the space before it. Here is the plainest way
# to do it, which recounts everything each time; the library counts each different word once and keeps its counts up to
# date. The two tables must agree. And since a new pair holds the new token, it occurs no more often than that token was made:
# down the table the counts never rise.
#
# Erratum: course C dates GPT-2, whose byte-level encoding this is, 2018; the paper and the model are of 2019.

# %%
excerpt = prose()[:lesson.pick(6000, 2000)]


def naive_merges(text, n_merges):
    """n_merges times: recount every pair of the whole text, merge the most frequent."""
    sequences, table = [list(word.encode("utf-8")) for word in split_into_words(text)], []
    for new in range(256, 256 + n_merges):
        count = Counter(pair for s in sequences for pair in zip(s, s[1:]))
        best = min(count, key=lambda pair: (-count[pair], pair))        # most frequent, then smallest
        table.append((best, count[best]))
        for s in sequences:
            i = 0
            while i < len(s) - 1:
                if (s[i], s[i + 1]) == best:
                    s[i:i + 2] = [new]
                i += 1
    return table


table = naive_merges(excerpt, lesson.pick(200, 40))
learnt = BPETokenizer.train(excerpt, 256 + len(table))
lesson.check(f"the first {len(table)} merges = a naive re-count", learnt.merges, [pair for pair, _ in table], atol=0,
             source="Sennrich et al. 2016, alg. 1")
for i, (pair, count) in enumerate(table[:8]):
    left, right = (learnt.vocabulary[p].decode("utf-8", errors="replace") for p in pair)
    print(f"    merge {i}: {left!r:>5} + {right!r:<5} → {left + right!r:<7} seen {count} times")

counts = [count for _, count in table]
lesson.check("down the table the counts never rise", counts, sorted(counts, reverse=True), atol=0, source="Sennrich et al. 2016, alg. 1")

# %% [markdown]
# To encode a new text, the merges are applied in the order in which they were learnt, inside each word. The library's
# `encode_and_show_work` returns every step.

# %%


def naive_encode(text, merges):
    """Every merge, in the order learnt, over the whole of each word."""
    ids = []
    for word in split_into_words(text):
        s = list(word.encode("utf-8"))
        for rank, pair in enumerate(merges):
            i = 0
            while i < len(s) - 1:
                if (s[i], s[i + 1]) == pair:
                    s[i:i + 2] = [256 + rank]
                i += 1
        ids += s
    return ids


other = prose()[-lesson.pick(3000, 1000):]
lesson.check("encode = all merges in the order learnt", english.encode(other), naive_encode(other, english.merges), atol=0,
             source="Sennrich et al. 2016, §3.2")
work = english.encode_and_show_work("The other fishermen, mañana")
for word in work["words"]:
    print(f"    {word['word']!r}: bytes {' '.join(word['bytes'])}")
    for step in word["merges"]:
        print(f"        merge {step['rank']:>3}: {step['pair'][0]} + {step['pair'][1]}".ljust(34) + " ".join(step["result"]))
print(f"    Ġ is a space, Ã± the two bytes of ñ: {len(work['text'].encode('utf-8'))} bytes became {len(work['ids'])} tokens, {work['ids']}")

# %% [markdown]
# ## 6. How large a vocabulary?
# Each merge makes sequences shorter, and the vocabulary larger by one. A smaller vocabulary is the beginning of a larger one,
# so one training gives them all. The vocabulary learns its training text: other text of the language is cut into more
# pieces, and other languages into more still, which their readers pay for in time and, where tokens are sold, in money.
# And the larger the vocabulary, the rarer its tokens; what stood in the training text a few times only, a model can hardly learn.

# %%
pieces = prose().split("\n\n\n")
order = torch.randperm(len(pieces), generator=lesson.generator).tolist()
held_out = "\n\n\n".join(pieces[i] for i in order[:len(pieces) // 10])
learn = "\n\n\n".join(pieces[i] for i in order[len(pieces) // 10:])
ENGLISH = ("In the evening the old fisherman mended his nets on the quay and told the children how, many years ago, a storm had carried "
           "his boat to an island that no map shows. Nobody believed him, but everyone listened.")
SPANISH = ("Por la tarde el viejo pescador remendaba sus redes en el muelle y contaba a los niños cómo, hace muchos años, una tormenta "
           "había llevado su barca hasta una isla que no aparece en ningún mapa. Nadie le creía, pero todos escuchaban.")
ITALIAN = ("La sera il vecchio pescatore rammendava le reti sul molo e raccontava ai bambini come, molti anni fa, una tempesta avesse "
           "portato la sua barca su un'isola che nessuna carta segna. Nessuno gli credeva, ma tutti ascoltavano.")
texts = {"its training text": learn, "held-out English": held_out, "a paragraph in English": ENGLISH, "the same in Italian": ITALIAN,
         "the same in Spanish": SPANISH}

sizes = lesson.pick([256, 320, 384, 512, 768, 1024, 1536, 2048], [256, 320, 512])
largest = BPETokenizer.train(learn, sizes[-1])
lesson.check("a smaller vocabulary is the beginning of a larger one", BPETokenizer.train(learn, sizes[2]).merges,
             largest.merges[:sizes[2] - 256], atol=0, source="Sennrich et al. 2016, alg. 1")
tokenizers = {size: BPETokenizer(largest.merges[:size - 256]) for size in sizes}
encoded = {(name, size): tokenizer.encode(text) for size, tokenizer in tokenizers.items() for name, text in texts.items()}
each = {(name, size): len(texts[name]) / len(ids) for (name, size), ids in encoded.items()}         # characters a token
rare = {}
for size in sizes:
    seen = Counter(encoded["its training text", size])
    merged = range(256, size)                                           # single bytes aside: most of them never occur
    rare[size] = sum(seen[i] < 10 for i in merged) / max(1, len(merged))

print("    characters a token, by vocabulary size\n    " + " " * 26 + "".join(f"{size:>7,}" for size in sizes))
for name in texts:
    print(f"    {name:<26}" + "".join(f"{each[name, size]:7.2f}" for size in sizes))
print(f"    {'merged tokens seen < 10 ×':<26}" + "".join(f"{rare[size]:7.0%}" for size in sizes))

first, last = sizes[0], sizes[-1]
lesson.claim("a larger vocabulary makes every text shorter",
             all(each[name, a] < each[name, b] for name in texts for a, b in itertools.pairwise(sizes)),
             f"held-out English: {each['held-out English', first]:.2f} characters a token with {first}, "
             f"{each['held-out English', last]:.2f} with {last:,}")
n_tokens = {size: len(encoded["held-out English", size]) for size in sizes}
early, late = ((1 - n_tokens[b] / n_tokens[a]) / (b - a) for a, b in (sizes[:2], sizes[-2:]))       # shortening for each merge added
lesson.claim("each further merge buys less", early > 2 * late,
             f"of held-out English the first {sizes[1] - first} merges save {1 - n_tokens[sizes[1]] / n_tokens[first]:.0%} of the tokens, "
             f"the last {last - sizes[-2]} save {1 - n_tokens[last] / n_tokens[sizes[-2]]:.0%}")
lesson.claim("it fits its training text better than other text", each["its training text", last] > each["held-out English", last],
             f"{each['its training text', last]:.2f} characters a token against {each['held-out English', last]:.2f} with {last:,} tokens")
count = {name: len(encoded[name, last]) for name in list(texts)[2:]}
lesson.claim("the same paragraph costs more in a language that the vocabulary was not made for",
             min(count["the same in Italian"], count["the same in Spanish"]) > 1.2 * count["a paragraph in English"],
             f"{count['a paragraph in English']} tokens in English, {count['the same in Italian']} in Italian, "
             f"{count['the same in Spanish']} in Spanish")
lesson.claim("the larger the vocabulary, the rarer its tokens", rare[last] > 0.5 > rare[512],
             f"of the merged tokens {rare[512]:.0%} stand less than 10 times in the training text with 512, "
             f"{rare[last]:.0%} with {last:,}", full_run=True)

fig, (left, right) = plotting.figure(11, 4.2, columns=2)
for name, marker in zip(texts, "os^vD"):
    left.plot(sizes, [each[name, size] for size in sizes], marker=marker, label=name)
left.axhline(1, color="black", linestyle=":", label="characters as tokens")
left.set(xlabel="vocabulary size (tokens)", ylabel="characters a token", xscale="log", title="Shorter sequences …", ylim=(0.8, None))
right.plot(sizes[1:], [100 * rare[size] for size in sizes[1:]], marker="o")
right.set(xlabel="vocabulary size (tokens)", ylabel="merged tokens that stand there < 10 times (%)", ylim=(-3, 103),
          xscale="log", title="… of tokens rarer in the training text")
for axes in (left, right):
    axes.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
    axes.minorticks_off()
left.legend()
lesson.figure(fig, "vocabulary_size")

lesson.end()
