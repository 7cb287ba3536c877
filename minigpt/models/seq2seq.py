"""Sequence to sequence: an encoder reads a sentence and a decoder writes its translation.

    encoder     hᵢ = [→hᵢ ; ←hᵢ]                        a BiLSTM's annotation of source word i
    attention   αₜᵢ = softmaxᵢ( vᵀ tanh(W_a [sₜ₋₁ ; hᵢ]) )      weight of source word i at step t
                cₜ = Σᵢ αₜᵢ hᵢ                          the context of target word t
    decoder     s₀ = tanh(W₀ [→h_S ; ←h₁])
                sₜ = LSTM(sₜ₋₁, [yₜ₋₁ ; cₜ])
                P(yₜ | y_<ₜ, x) = softmax(W_o tanh(W_s sₜ + W_c cₜ))

Without attention, cₜ = [→h_S ; ←h₁] at every t: one vector has to hold the whole sentence.

Source: course C, "RNNs: a Machine Translation example" and "Attention Modules"; Bahdanau et al.
2015, §3, eq. 4–6; without attention, Cho et al. 2014, §2.2.
Deviations: LSTMs replace the paper's gated units, and a tanh layer replaces its maxout layer. The
paper computes s₀ from ←h₁ alone; here it comes from both ends, so that the models with and without
attention differ in cₜ only. Not here: several layers, dropout.

Shapes: B batch, S source words, T target words, E embedding, H hidden units, V target vocabulary.
"""
import math
import sys
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minigpt.models.attention import AdditiveAttention
from minigpt.models.checks import TokenEmbedding, check_fields
from minigpt.models.recurrent import LSTM, BiLSTM


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The sizes; encoder (per direction), decoder and attention have `d_hidden` units."""

    source_vocab_size: int
    target_vocab_size: int
    d_embedding: int = 64
    d_hidden: int = 64
    attention: bool = True

    def __post_init__(self):
        check_fields(self)


@dataclass
class DecoderState:
    """The encoded sentences and the decoder's state so far; the cache of generation."""

    annotations: Tensor             # (B, S, 2H) hᵢ
    projected: Tensor | None        # (B, S, H)  hᵢ's part of W_a [s ; hᵢ]; None without attention
    mask: Tensor                    # (B, S)     True at source words
    summary: Tensor                 # (B, 2H)    [→h_S ; ←h₁]
    h: Tensor                       # (B, H)     sₜ₋₁, the hidden state of the decoder
    c: Tensor                       # (B, H)     its memory cell

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order, repeats allowed; for beam search."""
        for name, value in vars(self).items():
            if value is not None:
                setattr(self, name, value[rows])


class Seq2Seq(nn.Module):
    """source (B, S), lengths (B,), target (B, T) -> logits (B, T, V): [:, t] scores word t + 1.

    Source rows are padded on the right with any id; padding does not change the logits of a row.
    """

    def __init__(self, config: Seq2SeqConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        E, H = config.d_embedding, config.d_hidden
        self.source_embedding = TokenEmbedding(config.source_vocab_size, E)
        self.target_embedding = TokenEmbedding(config.target_vocab_size, E)
        self.encoder = BiLSTM(E, H, generator)
        self.start = nn.Linear(2 * H, H)                                # W₀
        self.decoder = LSTM(E + 2 * H, H, generator)
        self.attention = AdditiveAttention(H, 2 * H, H, generator) if config.attention else None
        self.hidden = nn.Linear(3 * H, H)                               # [W_s W_c]
        # W_o. Its name tells the optimizer that it holds a vector for each word, as embeddings do.
        self.out_embedding = nn.Linear(H, config.target_vocab_size)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, generator=generator)
        for linear in (self.start, self.hidden, self.out_embedding):
            std = 1 / math.sqrt(linear.in_features)
            nn.init.normal_(linear.weight, std=std, generator=generator)
            nn.init.zeros_(linear.bias)

    def encode(self, source: Tensor, lengths: Tensor) -> DecoderState:
        """Reads source (B, S), whose row b holds lengths[b] words and then padding."""
        B, S = source.shape
        if lengths.shape != (B,) or not ((lengths >= 1) & (lengths <= S)).all():
            raise ValueError(f"lengths must be {B} numbers from 1 to {S}, the width of the batch, "
                             f"not {lengths.tolist()}")
        mask = torch.arange(S, device=source.device) < lengths[:, None]         # (B, S)
        annotations = self.encoder(self.source_embedding(source), mask)         # (B, S, 2H)
        rightwards, leftwards = annotations.chunk(2, dim=-1)                    # (B, S, H)
        # At padding an LSTM keeps its state, so the last column is →h after each row's last word.
        summary = torch.cat([rightwards[:, -1], leftwards[:, 0]], dim=-1)       # (B, 2H)
        h = self.start(summary).tanh()                                          # (B, H)
        projected = self.attention.project(annotations) if self.attention else None
        return DecoderState(annotations, projected, mask, summary, h, torch.zeros_like(h))

    def decode(self, target: Tensor, state: DecoderState) -> tuple[Tensor, Tensor | None]:
        """Reads target words (B, T), all at once or one in each call, and updates `state`.

        Returns logits (B, T, V), and the weights α (B, T, S), or None without attention.
        """
        B = len(state.h)
        if target.dim() != 2 or len(target) != B or target.size(1) == 0:
            raise ValueError(f"target is ({B}, words), a row for each source, with at least one "
                             f"word, the start symbol; not {tuple(target.shape)}")
        y = self.target_embedding(target)                                       # (B, T, E)
        W_y, W_c = self.decoder.W.tensor_split([y.size(-1)], dim=1)             # (4H, E), (4H, 2H)
        context, states, weights = state.summary, [], []                        # context (B, 2H)
        for projected in (y @ W_y.T + self.decoder.b).unbind(1):                # T times (B, 4H)
            if self.attention:
                c, weight = self.attention(state.h[:, None], state.annotations, state.mask,
                                           state.projected)             # (B, 1, 2H), (B, 1, S)
                context = c[:, 0]                                               # (B, 2H)
                weights.append(weight)
            projected = projected + context @ W_c.T
            state.h, state.c = self.decoder.step(projected, state.h, state.c)
            states.append(torch.cat([state.h, context], dim=-1))                # (B, 3H)
        hidden = self.hidden(torch.stack(states, dim=1)).tanh()                 # (B, T, H)
        return self.out_embedding(hidden), torch.cat(weights, dim=1) if weights else None

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        return self.decode(target, self.encode(source, lengths))[0]

    def decoder_for(self, source: Tensor, lengths: Tensor) -> "Decoder":
        """The language model of the translations of these sentences, for `generate`."""
        return Decoder(self, self.encode(source, lengths))


class Decoder:
    """P(translation | source) as a language model: tokens (B, T) -> logits (B, T, V)."""

    context_length = sys.maxsize        # the state has a fixed size, so there is no limit

    def __init__(self, model: Seq2Seq, start: DecoderState):
        self.model, self.start = model, start

    def new_cache(self) -> list[DecoderState]:
        return [replace(self.start)]                        # a copy, since `decode` updates it

    def __call__(self, tokens: Tensor, cache: list[DecoderState] | None = None) -> Tensor:
        (state,) = self.new_cache() if cache is None else cache
        return self.model.decode(tokens, state)[0]
