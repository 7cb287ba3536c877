"""LSH attention: a query attends only to the keys that have the same hash as itself.

    h(x) = argmax [x R ; −x R]                  the bucket of x: the nearest of n directions
    o = Σᵣ e^{zʳ} oʳ / Σᵣ e^{zʳ}                the outputs of all rounds, as one softmax

LSH stands for locality-sensitive hashing: vectors at a small angle probably get the same hash.
Softmax gives most weight to large scores, and a query has large scores with keys at a small angle.
So attention to the keys in the query's own bucket approximates attention to all keys. Queries and
keys are the same vectors, up to their length.

One round sorts the tokens by bucket, and cuts the sorted order into N chunks of m tokens. A token
attends to the earlier tokens of its own bucket that lie in its chunk or in the chunk before: at
most 2m scores for each token. A hash can separate two near vectors, so R rounds with different
directions are combined. oʳ is the output of round r, and zʳ is the logarithm of its softmax's
denominator. The score of a key that a query meets in n rounds is reduced by log n, so that all
rounds together count it once.

The values that are averaged come from the past only. But the places where chunks are cut depend on
all tokens, so a later token can decide whether two earlier ones meet; this holds for Reformer too.

Source: course B, "Reformer"; Kitaev et al. 2020 (Reformer), §2 and appendix A; Andoni et al. 2015.
Deviations: the directions are drawn once, and all heads share them, so a layer that is computed
twice gives the same result. Not here: Reformer's hash in two parts, for very many buckets.

Shapes: B batch, H heads, T tokens, D width of one head, R rounds, N chunks of m tokens.
"""
import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.models.attention import attend, causal_mask
from minigpt.models.checks import check_sizes

SELF_SCORE = -1e5           # a token's score with itself: it counts only if it meets no other (§2)


def shared_attention(q: Tensor, v: Tensor) -> Tensor:
    """Full causal attention with keys k = q/‖q‖: (B, H, T, D) twice -> (B, H, T, D).

    A query is most like its own key, so a token attends to itself only if there is no other (§2).
    """
    mask = causal_mask(q.size(2)).tril(-1)                              # (T, T) the strict past
    mask[:1, :1] = True                                                 # it has no past
    return attend(q, F.normalize(q, dim=-1), v, mask.to(q.device), scale=1.0)


def random_rotations(n_rounds: int, width: int, n_buckets: int,
                     generator: torch.Generator | None = None) -> Tensor:
    """n_buckets/2 random directions for each round: (R, D, n_buckets/2) normal numbers."""
    if n_buckets % 2 or n_buckets < 2 or n_rounds < 1:
        raise ValueError("each direction and its opposite make two buckets, so n_buckets must be "
                         f"2, 4, 6, …, and n_rounds 1 or more, not {n_buckets} and {n_rounds}")
    return torch.randn(n_rounds, width, n_buckets // 2, generator=generator)


def lsh_buckets(x: Tensor, rotations: Tensor) -> Tensor:
    """h(x) = argmax [x R ; −x R] in each round: (B, H, T, D), (R, D, n/2) -> (B, H, R, T)."""
    projected = x[:, :, None] @ rotations                               # (B, H, R, T, n/2)
    return torch.cat([projected, -projected], dim=-1).argmax(-1)        # (B, H, R, T)


def in_chunks(x: Tensor, order: Tensor, chunk: int) -> Tensor:
    """Sorts x (B, H, T, D) by each round's `order` (B, H, R, T): (B, H, R, N, m, D)."""
    index = order.flatten(2)[..., None].expand(-1, -1, -1, x.size(-1))  # (B, H, R·T, D)
    return x.gather(2, index).unflatten(2, (order.size(2), -1, chunk))


def with_previous(x: Tensor, fill: float = 0) -> Tensor:
    """Puts the chunk before, or `fill`, in front of each: (…, N, m, …) -> (…, N, 2m, …)."""
    previous = torch.cat([torch.full_like(x[:, :, :, :1], fill), x[:, :, :, :-1]], dim=3)
    return torch.cat([previous, x], dim=4)


def count_meetings(numbers: Tensor, query_at: Tensor, key_at: Tensor) -> tuple[Tensor, Tensor]:
    """In how many rounds each query meets each key, and whether it does in the pair's own round.

    Both are (B, H, R, N, m, 2m), for queries at positions (…, m, 1) and keys at (…, 1, 2m).
    `numbers` (B, H, R, T) is one number for the bucket and the chunk of a token. Two tokens meet if
    they have the same number, or if the query has the next one.
    """
    shape, last = torch.broadcast_shapes(query_at.shape, key_at.shape), numbers.size(-1) - 1
    times = torch.zeros(shape, dtype=torch.int32, device=numbers.device)
    here = torch.zeros(shape, dtype=torch.bool, device=numbers.device)
    for r in range(numbers.size(2)):
        query, key = (numbers[:, :, r].gather(-1, at.clamp(max=last).flatten(2)).view_as(at)
                      for at in (query_at, key_at))
        meet = (query == key) | (query == key + 1)                      # in round r
        times += meet
        here[:, :, r] = meet[:, :, r]
    return times, here


def lsh_attention(q: Tensor, v: Tensor, buckets: Tensor, chunk: int) -> Tensor:
    """Attention within buckets: q, v (B, H, T, D), buckets (B, H, R, T) -> (B, H, T, D)."""
    T = q.size(2)
    if buckets.dim() != 4 or (*buckets.shape[:2], buckets.size(3)) != q.shape[:3]:
        raise ValueError("q is (batch, heads, tokens, width) and buckets is (batch, heads, "
                         f"rounds, tokens), not {tuple(q.shape)} and {tuple(buckets.shape)}")
    check_sizes(chunk=chunk, n_rounds=buckets.size(2), n_tokens=T)
    # 1. Pad T to a multiple of m. Sorting puts the padding last, where causality hides it.
    padding = -T % chunk
    q, v = F.pad(q, (0, 0, 0, padding)), F.pad(v, (0, 0, 0, padding))   # T is longer from here on
    buckets = F.pad(buckets, (0, padding), value=int(buckets.max()))
    # 2. Sort by bucket, and inside a bucket by position. Cut into chunks.
    order = buckets.sort(dim=-1, stable=True).indices                   # (B, H, R, T) positions
    rank = order.argsort(dim=-1)                            # (B, H, R, T) each position's place
    n_positions = q.size(2)                                 # as a position: later than all others
    chunked = order.unflatten(-1, (-1, chunk))                          # (B, H, R, N, m)
    query_at = chunked[..., None]                                       # (B, H, R, N, m, 1)
    key_at = with_previous(chunked, n_positions)[..., None, :]          # (B, H, R, N, 1, 2m)
    # 3. A query meets the keys of its bucket in its chunk and in the one before, if they are past.
    numbers = buckets * (n_positions + 1) + rank // chunk   # no two buckets have successive numbers
    times, here = count_meetings(numbers, query_at, key_at)             # (B, H, R, N, m, 2m)
    here &= key_at <= query_at
    # 4. Attention in each chunk, and its log-denominator z.
    queries = in_chunks(q, order, chunk)                                # (B, H, R, N, m, D)
    keys = with_previous(in_chunks(F.normalize(q, dim=-1), order, chunk))       # 2m keys for m
    scores = queries @ keys.mT - times.clamp(min=1).to(q.dtype).log()   # (B, H, R, N, m, 2m)
    self_score = max(SELF_SCORE, torch.finfo(q.dtype).min / 2)          # float16 ends at −65,504
    scores = scores.masked_fill(~here, float("-inf")).masked_fill(query_at == key_at, self_score)
    z = scores.logsumexp(-1, keepdim=True)                              # (B, H, R, N, m, 1)
    o = (scores - z).exp() @ with_previous(in_chunks(v, order, chunk))  # (B, H, R, N, m, D)
    # 5. Undo the sorting, and combine the rounds.
    index = rank[..., None].expand(-1, -1, -1, -1, v.size(-1))          # (B, H, R, T, D)
    o = o.flatten(3, 4).gather(3, index)                                # (B, H, R, T, D)
    z = z.flatten(3).gather(3, rank)                                    # (B, H, R, T)
    return (z.softmax(dim=2)[..., None] * o).sum(2)[:, :, :T]           # (B, H, T, D), unpadded
