"""A GPT-2-like decoder (Radford et al., 2019) that generates with a cache."""

import torch
from torch import Tensor, nn

from .transformer import KeyValues, blocks


class GPT(nn.Module):
    """Tokens to logits of the next tokens.

    Word and position embeddings, attention, MLP and head each have their own mask; the head is not tied to the word
    embedding. No bias and no affine normalization; ReLU in place of GPT-2's GELU, as in arXiv 2511.04217.

    Args:
        classes: tokens in the vocabulary. Default 256, bytes.
        context: maximum number of tokens in a sequence. Default 256.
        width: features of a token. Default 512.
        depth: blocks. Default 4.
        head_width: features of a head, a divisor of ``width``. Default 64.
        qk_scaling: see `transformer.Attention`. Default False.

    Input int64 ``[B, T]``, output ``[B, T, classes]``.

    Raises:
        ValueError: a width that is not a multiple of ``head_width``; a depth below 1; a sequence longer than
            ``context``.
    """

    def __init__(
        self,
        classes: int = 256,
        context: int = 256,
        width: int = 512,
        depth: int = 4,
        head_width: int = 64,
        qk_scaling: bool = False,
    ) -> None:
        super().__init__()
        self.context = context
        self.words = nn.Embedding(classes, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = blocks(depth, width, head_width, causal=True, qk_scaling=qk_scaling)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, classes, bias=False)

    def forward(self, tokens: Tensor, cache: list[KeyValues] | None = None) -> Tensor:
        """Logits of the next token at each position. With a cache (`new_cache`), ``tokens`` follow the cached ones."""
        return self.head(self._features(tokens, cache))

    def _features(self, tokens: Tensor, cache: list[KeyValues] | None) -> Tensor:
        seen = cache[0].length if cache else 0
        end = seen + tokens.shape[1]
        if end > self.context:
            raise ValueError(f"tokens: {end} in a sequence, expected at most context={self.context}")
        x = self.words(tokens) + self.positions(torch.arange(seen, end, device=tokens.device))
        for i, block in enumerate(self.blocks):
            x = block(x, cache[i] if cache else None)
        return self.norm(x)

    def new_cache(self) -> list[KeyValues]:
        """An empty cache for ``torch.no_grad()``. With it, each new token costs one row of each layer."""
        return [KeyValues(self.context) for _ in self.blocks]

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, count: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Continues sequences.

        Args:
            tokens: int64 ``[B, T]``, T at least 1.
            count: tokens to add; ``T + count`` at most ``context``.
            temperature: divisor of the logits before sampling; 0 takes the most likely token. Default 1.
            generator: for sampling. Default: PyTorch's default generator.

        Returns:
            int64 ``[B, T + count]``.

        Raises:
            ValueError: no token to start from, more than ``context`` tokens in total, or a negative temperature.
        """
        if tokens.shape[1] < 1:
            raise ValueError("tokens: expected at least one to continue")
        if tokens.shape[1] + count > self.context:
            raise ValueError(f"count={count} after {tokens.shape[1]}: expected at most context={self.context} in total")
        if not temperature >= 0:
            raise ValueError(f"temperature={temperature}: expected a number of at least 0")
        cache, new = self.new_cache(), tokens
        for _ in range(count):
            logits = self.head(self._features(new, cache)[:, -1])
            if temperature == 0:
                new = logits.argmax(-1, keepdim=True)
            else:
                new = torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)
            tokens = torch.cat((tokens, new), 1)
        return tokens
