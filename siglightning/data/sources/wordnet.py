"""ImageNet's classes: WordNet numbers, which its folders have for names, and what they are called in prompts."""

from collections.abc import Sequence
from functools import cache


@cache
def imagenet_classes() -> dict[str, str]:
    """The 1,000 WordNet numbers, such as ``n01440764``, in the order of the labels, with the names of open_clip."""
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    return dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))


def names_of_numbers(numbers: Sequence[str], folder: str) -> dict[str, str]:
    """WordNet number -> name.

    Args:
        numbers: names of folders.
        folder: where they are, for the error.

    Raises:
        ValueError: one of them is no class of ImageNet.
    """
    names = imagenet_classes()
    strange = [number for number in numbers if number not in names]
    if strange or not numbers:
        raise ValueError(
            f"Expected folders named by ImageNet's 1,000 WordNet numbers, such as n01440764, in {folder}, got "
            f"{', '.join(strange[:3]) or 'none'}{' ...' if len(strange) > 3 else ''}. FolderDataModule reads classes "
            "of any name."
        )
    return {number: names[number] for number in numbers}
