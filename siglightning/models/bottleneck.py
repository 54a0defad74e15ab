"""A token embedding factored through a narrow middle: ``N x K`` rows and one ``K x W`` matrix.

With N = 49,408 tokens and W = 192 a full table holds 9.5 million numbers, most of which a small data set never
touches, yet the optimizer walks through all of them at every step; K = 32 leaves 1.6 million.
"""

from torch import Tensor, nn


class BottleneckEmbedding(nn.Module):
    """Token embedding as the product of a narrow table and a matrix.

    Source: SigLIP (arXiv:2303.15343), section on multilingual pre-training: K = 96 for W = 768 saves the memory of a
    250,000-token table at a loss of about half a point.

    Args:
        vocab_size: rows of the table, N.
        bottleneck: columns of the table, K.
        width: features a token, W.

    Raises:
        ValueError: K is not between 1 and W.
    """

    def __init__(self, vocab_size: int, bottleneck: int, width: int) -> None:
        super().__init__()
        if not 1 <= bottleneck <= width:
            raise ValueError(
                f"bottleneck: expected 1 to {width}, the width of the text tower, got {bottleneck}. A wider middle "
                "saves nothing; null is the full table."
            )
        self.table = nn.Embedding(vocab_size, bottleneck)
        self.expand = nn.Linear(bottleneck, width, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Embeddings ``[..., W]`` of int64 ids ``[...]``."""
        embeddings: Tensor = self.expand(self.table(text))
        return embeddings
