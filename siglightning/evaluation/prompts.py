"""From class names to prompts: templates by name, and how they are filled."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

Templates = Sequence[str] | str
"""Templates with ``{}`` in the place of a class name, or the name of some that are known."""

DEFAULT_TEMPLATES = ("a picture of {}.", "{}")


def _of_open_clip(name: str) -> list[str]:
    from open_clip import zero_shot_metadata  # takes a second, which only those who ask for it need to wait

    return [fill("{}") for fill in getattr(zero_shot_metadata, name)]


def _cifar() -> list[str]:
    """The 18 of CLIP's evaluation of CIFAR-10 and CIFAR-100: nine forms, with the indefinite and the definite article.

    Source: the prompts that accompany Radford et al. 2021, arXiv:2103.00020.
    """
    kinds = ["", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good "]
    sizes = ["small ", "big "]
    return [
        template
        for article in ("a", "the")
        for template in (
            *(f"a {kind}photo of {article} {{}}." for kind in kinds),
            *(f"a photo of {article} {size}{{}}." for size in sizes),
        )
    ]


TEMPLATES: Mapping[str, Callable[[], list[str]]] = {
    "names": lambda: ["{}"],
    "photo": lambda: ["a photo of a {}."],
    "imagenet": partial(_of_open_clip, "OPENAI_IMAGENET_TEMPLATES"),
    "imagenet_simple": partial(_of_open_clip, "SIMPLE_IMAGENET_TEMPLATES"),
    "cifar": _cifar,
    "pets": lambda: ["a photo of a {}, a type of pet."],
}
"""Known templates by name: how many there are is what the paper and the implementations of CLIP evaluate with."""


def templates_of(given: Templates) -> list[str]:
    """Templates as they are, or those of a name.

    Args:
        given: a list of templates, one template, or a name: ``names`` (the class name alone), ``photo``, ``imagenet``
            (CLIP's 80), ``imagenet_simple`` (its best 7), ``cifar`` (18) or ``pets``.

    Raises:
        ValueError: an unknown name, no templates, or one without exactly one ``{}``.
    """
    if not isinstance(given, str):
        _check(given)
        return list(given)
    if "{}" in given:
        return templates_of([given])
    if given not in TEMPLATES:
        raise ValueError(
            f"Expected a list of templates such as ['a photo of a {{}}.'], or one of the names {', '.join(TEMPLATES)}; "
            f"got {given!r}."
        )
    return TEMPLATES[given]()


def fill_templates(class_name: str, templates: Sequence[str]) -> list[str]:
    """Prompts of one class, one for each template.

    Args:
        class_name: what replaces ``{}``; other braces in it are left alone.
        templates: each with ``{}`` exactly once.

    Raises:
        ValueError: no templates, or one without exactly one ``{}``.
    """
    _check(templates)
    return [template.replace("{}", class_name) for template in templates]


def _check(templates: Sequence[str]) -> None:
    if not templates:
        raise ValueError("Zero-shot classification needs at least one prompt template, got none. Use ['{}'].")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"A prompt template holds {{}} once, where the class name goes; got {template!r}. "
                "Write for instance 'a picture of {}.'"
            )
