"""What a fine-tuning minimises: the classifier's loss, and that of pictures and class prompts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """Parts of the loss and their weights.

    Args:
        classification: weight of the classifier's loss.
        contrastive: weight of the sigmoid loss between the pictures and their class prompts, which needs a network with
            a text tower. Prompts are the captions that the data make of class names (``templates``); pictures of one
            class match each other's. A softmax over a batch would take those for negatives, and is not offered.

    Raises:
        ValueError: a negative weight, or nothing to learn.
    """

    classification: float = 1.0
    contrastive: float = 0.0

    def __post_init__(self) -> None:
        if min(self.classification, self.contrastive) < 0 or self.classification + self.contrastive == 0:
            raise ValueError(
                "Expected weights of at least 0, one of them positive, got `objective.classification` "
                f"{self.classification} and `objective.contrastive` {self.contrastive}."
            )
