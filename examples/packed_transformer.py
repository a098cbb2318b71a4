"""A small pre-norm transformer over packed texts, of `glimodern.ops` alone: no padding, no mask.

    x = embedding(words)
    x = x + Wo attention(rotary(Wqkv norm(x)))      x = x + W2 (gelu(y1) * y2),  [y1 | y2] = W1 norm(x)

Every addition is one operator with the norm that follows it, so a layer takes and gives (branch to be added, x).
"""

import torch
from torch import Tensor, nn

from glimodern import ops


def bounds(lengths: list[int]) -> Tensor:
    """Lengths of packed texts -> cu, int32 [texts + 1]."""
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(
        self, branch: Tensor, x: Tensor, angles: tuple[Tensor, Tensor], cu: Tensor, longest: int
    ) -> tuple[Tensor, Tensor]:
        norm = self.attention_norm
        normed, x = ops.add_layer_norm(branch, x, norm.weight, norm.bias)
        qkv = self.qkv(normed).view(len(x), 3, self.heads, -1)
        q, k = ops.rotary(qkv[:, :2], *angles).unbind(1)
        mixed = ops.attention_varlen(q, k, qkv[:, 2], cu, longest).flatten(1)
        norm = self.mlp_norm
        normed, x = ops.add_layer_norm(self.out(mixed), x, norm.weight, norm.bias)
        return self.mlp_out(ops.geglu(self.mlp_in(normed))), x


class PackedTransformer(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.pair_width = width // heads // 2

    def forward(self, words: Tensor, cu: Tensor) -> Tensor:
        """words int64 [n], cu int32 [texts + 1] -> [n, width]."""
        lengths = cu.diff().long()
        place = torch.arange(len(words)) - torch.repeat_interleave(cu[:-1].long(), lengths)
        turns = place[:, None] / 1000.0 ** torch.linspace(0, 1, self.pair_width)
        angles, longest = (turns.cos(), turns.sin()), int(lengths.max())
        x = self.embedding(words)
        branch = torch.zeros_like(x)
        for layer in self.layers:
            branch, x = layer(branch, x, angles, cu, longest)
        norm = self.final_norm
        return ops.add_layer_norm(branch, x, norm.weight, norm.bias, return_sum=False)
