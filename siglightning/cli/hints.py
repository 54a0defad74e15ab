"""Turn a parser's message into one line that names the mistake and the nearest right name."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

MAX_LENGTH = 400  # characters of a message that no rule knows


@dataclass(frozen=True)
class Group:
    """Settings that one argument takes together.

    Attributes:
        parameter: the argument.
        keys: of all settings.
        required: of those that have no default.
    """

    parameter: str
    keys: Collection[str]
    required: Collection[str]

    def __str__(self) -> str:
        return f"{{{': ..., '.join(self.keys)}: ...}}"


@dataclass(frozen=True)
class Vocabulary:
    """The right names.

    Attributes:
        keys: dotted keys of a configuration, such as ``trainer.max_steps``.
        classes: names of classes that a configuration may hold.
        parameters: names of the arguments of those classes.
        groups: the groups of settings that those arguments take, by their names, such as ``LastBlocks``.
    """

    keys: Collection[str]
    classes: Collection[str]
    parameters: Collection[str]
    groups: Mapping[str, "Group"]


def nearest(name: str, names: Collection[str]) -> str:
    """`` Did you mean 'X'?``, or nothing when no name is near."""
    near = get_close_matches(name, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def explain(message: str, vocabulary: Vocabulary) -> str:
    """One line for a message of the parser.

    Args:
        message: what the parser says, often over many lines.
        vocabulary: the right names.
    """
    for rule in (
        _denied,
        _other_task,
        _no_choice,
        _unknown_parameter,
        _unknown_class,
        _unknown_flag,
        _unknown_key,
        _missing,
        _wrong_type,
    ):
        line = rule(message, vocabulary)
        if line:
            return line
    text = " ".join(message.split())
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ..."


def _denied(message: str, vocabulary: Vocabulary) -> str | None:
    match = re.search(r"Importing '([^']+)' is not allowed", message)
    if not match:
        return None
    package = match[1].partition(".")[0]
    return (
        f"{match[1]!r} lies outside the packages that a configuration may name; nothing was imported. "
        f"If you wrote it or trust it, add --trust_imports {package}"
    )


def _other_task(message: str, vocabulary: Vocabulary) -> str | None:
    """Towers of a configuration whose task was changed behind it: jsonargparse reads what it has read before."""
    if not re.search(r"Given value: Namespace\(name=.+__subclasses_disabled__", message):
        return None
    return (
        "The towers of a configuration cannot be taken over to another task. Name the network by itself: "
        "--config recipe/satellite_prompts --model.network.source RUN, or class_path: "
        "siglightning.models.load_two_tower with `source: RUN` in a configuration."
    )


def _no_choice(message: str, vocabulary: Vocabulary) -> str | None:
    """A value where one of several words, or a group of settings instead of them, is expected."""
    key = re.findall(r'Parser key "([^"]+)"', message)
    kinds, value = re.search(r"Subtypes: \[(.+)\]", message), re.search(r"Given value: (.+)", message)
    words = re.findall(r"Literal\[([^]]+)\]", kinds[1]) if kinds else []
    if not (key and kinds and value):
        return None
    choices = [word.strip("'\"") for listed in words for word in listed.split(", ")]
    groups = [vocabulary.groups[name] for name in re.findall(r"(?<!\[)<class '[\w.]+\.(\w+)'>", kinds[1])
              if name in vocabulary.groups]  # fmt: skip
    if not (choices or groups):
        return None
    forms = [*map(repr, choices), *map(str, groups)]
    forms += ["a list of these" if groups else "a list"] if "list[" in kinds[1] else []
    forms += ["a number"] if re.search(r"<class '(int|float)'>", kinds[1]) else []
    given = value[1].strip()
    return f"{key[-1]}: expected {_or(forms)}, got {given!r}.{nearest(given, choices)}"


def _or(forms: list[str]) -> str:
    return " or ".join([", ".join(forms[:-1]), forms[-1]] if len(forms) > 1 else forms)


def _unknown_parameter(message: str, vocabulary: Vocabulary) -> str | None:
    match = re.search(r"Option '([^']+)' is not accepted", message)
    if not match:
        return None
    names = {*vocabulary.parameters, *(name for group in vocabulary.groups.values() for name in group.keys)}
    return f"There is no argument {match[1]!r}.{nearest(match[1], names)}"


def _unknown_class(message: str, vocabulary: Vocabulary) -> str | None:
    match = (
        re.search(r"Expected a dot import path string: (\S+)", message)
        or re.search(r"class_path '([^']+)':\s+(?:module|No module named|'\w+' object|Unexpected import path)", message)
        or re.search(r"module '[\w.]+' has no attribute '(\w+)'", message)
    )
    if not match:
        return None
    short = match[1].rpartition(".")[2]
    return f"There is no class {match[1]!r}.{nearest(short, vocabulary.classes)}"


def _unknown_flag(message: str, vocabulary: Vocabulary) -> str | None:
    match = re.search(r"[Uu]nrecognized arguments?: (\S+)", message)
    if not match:
        return None
    flag = match[1].partition("=")[0]
    return f"There is no option {flag!r}.{nearest(flag, [f'--{key}' for key in vocabulary.keys])}"


def _unknown_key(message: str, vocabulary: Vocabulary) -> str | None:
    match = re.search(r"does not accept option '([^']+)'", message)
    if not match:
        return None
    return f"There is no key {match[1]!r}.{nearest(match[1], vocabulary.keys)}"


def _missing(message: str, vocabulary: Vocabulary) -> str | None:
    match = re.search(r"arguments are required: (.+)", message)
    if not match:
        return None
    names = [name.strip() for name in match[1].split(",")]
    groups = [group for group in vocabulary.groups.values() if set(names) <= set(group.required)]
    if groups:  # sections have a dot in their names
        return f"Missing: {', '.join(names)}. Give {_or([f'{group.parameter}: {group}' for group in groups])}."
    names = [name.partition(".")[2] for name in names]
    return f"Missing: {', '.join(names)}. Give a configuration, for example --config quickstart"


def _wrong_type(message: str, vocabulary: Vocabulary) -> str | None:
    key = re.findall(r'Parser key "([^"]+)"', message)
    wrong = re.search(r"Expected an? (.+?)\. Got value: (.+)", message)
    if not key or not wrong:
        return None
    given, words = wrong[2].strip(), re.fullmatch(r"typing\.Literal\[([^]]+)\]", wrong[1])
    choices = [word.strip("'\"") for word in words[1].split(", ")] if words else []
    kind = _or([*map(repr, choices)]) if choices else re.sub(r"<class '([\w.]+)'>", r"\1", wrong[1])
    return f"{key[-1]}: expected {kind}, got {given!r}.{nearest(given, choices)}"
