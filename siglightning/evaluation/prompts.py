"""From class names to prompts."""

from collections.abc import Sequence

DEFAULT_TEMPLATES = ("a picture of {}.", "{}")


def fill_templates(class_name: str, templates: Sequence[str]) -> list[str]:
    """Prompts of one class, one for each template.

    Args:
        class_name: what replaces ``{}``; other braces in it are left alone.
        templates: each with ``{}`` exactly once.

    Raises:
        ValueError: no templates, or one without exactly one ``{}``.
    """
    if not templates:
        raise ValueError("Zero-shot classification needs at least one prompt template, got none. Use ['{}'].")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"A prompt template holds {{}} once, where the class name goes; got {template!r}. "
                "Write for instance 'a picture of {}.'"
            )
    return [template.replace("{}", class_name) for template in templates]
