"""Sequence to sequence: one network reads a sentence, another writes its translation, and attention says where to look while writing.

    encoder     hᵢ = [→hᵢ ; ←hᵢ]                                      a BiLSTM's annotation of source word i
    attention   αₜᵢ = softmaxᵢ( vᵀ tanh(W[sₜ₋₁ ; hᵢ]) )               how much word t to be written takes from source word i
                cₜ = Σᵢ αₜᵢ hᵢ
    decoder     sₜ = LSTM(sₜ₋₁, [yₜ₋₁ ; cₜ])        P(yₜ | y_<ₜ, x) = softmax(W_o tanh(W_s sₜ + W_c cₜ))

Without attention cₜ = [→h_S ; ←h₁] for every t: whatever the sentence said must pass through this one vector.

Source: course C, "Attention in RNNs"; Bahdanau et al. 2015, §3 and eq. 4–6; without attention Cho et al. 2014, §2.2.
Deviations: LSTMs for their gated units; one tanh layer for their maxout, which reads sₜ and cₜ where theirs reads sₜ₋₁, yₜ₋₁ and cₜ
(§A.2.2); and the decoder starts from both ends of the encoder, s₀ = tanh(W[→h_S ; ←h₁]), where they take ←h₁ (so that with and
without attention differ in cₜ alone).
Not here: several layers, dropout.

Shapes: B batch, S source words, T target words, E embedding, H hidden units, V target vocabulary.
"""
import math
import sys
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minigpt.models.attention import AdditiveAttention
from minigpt.models.recurrent import LSTM, BiLSTM


@dataclass(frozen=True)
class Seq2SeqConfig:
    """What fixes the model's shape. Encoder, decoder and attention all have `d_hidden` units (in each direction)."""

    source_vocab_size: int
    target_vocab_size: int
    d_embedding: int = 64
    d_hidden: int = 64
    attention: bool = True


@dataclass
class DecoderState:
    """What the decoder knows: the sentence it translates, and where it stands. One of these is a whole cache."""

    annotations: Tensor             # (B, S, 2H) hᵢ
    projected: Tensor | None        # (B, S, H)  the hᵢ half of the score, the same at every step; None without attention
    mask: Tensor                    # (B, S)     True at source words
    summary: Tensor                 # (B, 2H)    [→h_S ; ←h₁]
    h: Tensor                       # (B, H)     sₜ₋₁, what the decoder shows
    c: Tensor                       # (B, H)     and what it remembers

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order, repeats allowed: what beam search does to its survivors."""
        for name, value in vars(self).items():
            if value is not None:
                setattr(self, name, value[rows])


class Seq2Seq(nn.Module):
    """source (B, S), lengths (B,), target (B, T) -> logits (B, T, V): logits[:, t] scores target word t + 1 given words 0..t and the source.

    Rows are padded on the right with any id. A row gives the same numbers as it does alone.
    """

    def __init__(self, config: Seq2SeqConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        E, H = config.d_embedding, config.d_hidden
        self.source_embedding = nn.Embedding(config.source_vocab_size, E)
        self.target_embedding = nn.Embedding(config.target_vocab_size, E)
        self.encoder = BiLSTM(E, H, generator)
        self.start = nn.Linear(2 * H, H)
        self.decoder = LSTM(E + 2 * H, H, generator)
        self.attention = AdditiveAttention(H, 2 * H, H, generator) if config.attention else None
        self.hidden = nn.Linear(3 * H, H)
        self.out_embedding = nn.Linear(H, config.target_vocab_size)     # a vector a word, and so, for the optimizer, an embedding
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, generator=generator)
        for linear in (self.start, self.hidden, self.out_embedding):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features), generator=generator)
            nn.init.zeros_(linear.bias)

    def encode(self, source: Tensor, lengths: Tensor) -> DecoderState:
        """Reads source (B, S), of which the first `lengths` (B,) of each row count. ValueError if a length does not fit."""
        if lengths.shape != source.shape[:1] or not ((lengths >= 1) & (lengths <= source.size(1))).all() or not len(source):
            raise ValueError(f"lengths must be {source.size(0)} numbers from 1 to {source.size(1)}, the width of the batch, "
                             f"not {lengths.tolist()}")
        mask = torch.arange(source.size(1), device=source.device) < lengths[:, None]            # (B, S)
        annotations = self.encoder(self.source_embedding(source), mask)                         # (B, S, E) -> (B, S, 2H)
        rightwards, leftwards = annotations.chunk(2, dim=-1)                                    # (B, S, H)
        # At pads an LSTM hands its state on, so the last column holds →h at each row's own last word.
        summary = torch.cat([rightwards[:, -1], leftwards[:, 0]], dim=-1)                       # (B, 2H)
        h = self.start(summary).tanh()                                                          # (B, H)
        projected = self.attention.project(annotations) if self.attention else None             # (B, S, H)
        return DecoderState(annotations, projected, mask, summary, h, torch.zeros_like(h))

    def decode(self, target: Tensor, state: DecoderState) -> tuple[Tensor, Tensor | None]:
        """Reads target words (B, T), starting from `state`, which moves on: logits (B, T, V), and weights α (B, T, S) or None.

        All T at once when the translation is known (teacher forcing), one at a time while it is being written: the same numbers.
        """
        if target.size(1) == 0:
            raise ValueError("decoding starts from at least one target word, the start symbol")
        y = self.target_embedding(target)                                                       # (B, T, E)
        W_y, W_c = self.decoder.W.split([y.size(-1), state.summary.size(-1)], dim=1)            # (4H, E), (4H, 2H)
        states, contexts, weights = [], [], []
        for projected in (y @ W_y.T + self.decoder.b).unbind(1):                                # T times (B, 4H)
            context = state.summary
            if self.attention:
                context, weight = self.attention(state.h[:, None], state.annotations, state.mask, state.projected)     # (B, 1, 2H), (B, 1, S)
                context = context[:, 0]                                                         # (B, 2H)
                weights.append(weight)
            state.h, state.c = self.decoder.step(projected + context @ W_c.T, state.h, state.c)
            states.append(torch.cat([state.h, context], dim=-1))                                # (B, 3H)
        logits = self.out_embedding(self.hidden(torch.stack(states, dim=1)).tanh())             # (B, T, 3H) -> (B, T, H) -> (B, T, V)
        return logits, torch.cat(weights, dim=1) if weights else None

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        return self.decode(target, self.encode(source, lengths))[0]

    def decoder_for(self, source: Tensor, lengths: Tensor) -> "Decoder":
        """A language model of translations of these sentences, for `generate` and `beam_search`."""
        return Decoder(self, self.encode(source, lengths))


class Decoder:
    """P(translation | these sources) as a language model: tokens (B, T) -> logits (B, T, V), each row for its own source."""

    context_length = sys.maxsize                                        # an LSTM's state does not run out of room

    def __init__(self, model: Seq2Seq, start: DecoderState):
        self.model, self.start = model, start

    def new_cache(self) -> list[DecoderState]:
        return [replace(self.start)]                                    # a copy: the start stays where it is

    def __call__(self, tokens: Tensor, cache: list[DecoderState] | None = None) -> Tensor:
        return self.model.decode(tokens, (self.new_cache() if cache is None else cache)[0])[0]
